"""Failures as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

Their libraries try a request again at 408, 409, 429 and from 500 on, unless `x-should-retry` says otherwise: an image
that needs more memory than there is would be generated three times.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from proxy.errors import Failure, answers_200

LONGEST_WAIT_S = 60  # longer ones leave the user of a library before a program that says nothing
PATHS = "/v1/"
# the type and the code for a status; any other one below 500 is an invalid request
_KINDS: Mapping[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("server_error", "unavailable"),
    504: ("server_error", "deadline_exceeded"),
    507: ("server_error", "out_of_memory"),
}
NO_NAMES: Mapping[str, str] = MappingProxyType({})


class Refused(Failure):
    """A failure that knows the error object's other members.

    Args:
        param: the field that must change.
        type: instead of the status's own.
        more: members that only this error has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.param, self.code, self.type, self.more = param, code, type, more or {}


def error_object(failure: Failure, names: Mapping[str, str] = NO_NAMES) -> dict[str, Any]:
    """The error object.

    Args:
        names: by native field, the name by which the client sent it.
    """
    kind, code = _KINDS.get(failure.status, ("invalid_request_error" if failure.status < 500 else "server_error", None))
    if isinstance(failure, Refused):
        return {
            "message": failure.message, "type": failure.type or kind, "param": failure.param,
            "code": failure.code or code, **failure.more,
        }  # fmt: skip
    message, param = failure.message, None
    if failure.status in (400, 413):  # the native sentence begins with the field's name
        first = re.match(r"[a-z_]+", message)
        param = names.get(first[0]) if first else None
        message = renamed(message, names)
    return {"message": message, "type": kind, "param": param, "code": code}


def renamed(sentence: str, names: Mapping[str, str]) -> str:
    """A native sentence with the client's own names of fields."""
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda word: names.get(word[0], word[0]), sentence)


def refusal(failure: Failure, names: Mapping[str, str] = NO_NAMES) -> JSONResponse:
    """The answer to a failed request; `names` as for `error_object`."""
    headers = dict(failure.headers)
    is_worth_it = failure.retry_after is not None and failure.retry_after <= LONGEST_WAIT_S
    if not is_worth_it:
        headers.pop("Retry-After", None)
    headers["x-should-retry"] = "true" if is_worth_it else "false"
    return JSONResponse({"error": error_object(failure, names)}, failure.status, headers=headers)


def refused(request: Request, failure: Failure) -> Response:
    """The answer to a failed request in the form that its path's clients read."""
    if request.scope["path"].startswith(PATHS):
        return refusal(failure)
    return failure.response(answers_200(request))
