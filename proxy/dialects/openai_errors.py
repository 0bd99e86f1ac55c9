"""Failures as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

Their libraries try a request again at 408, 409, 429 and from 500 on, unless `x-should-retry` says otherwise: an image
that needs more memory than there is would be generated three times.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from proxy.dialects.refused import NO_NAMES, Refused, named_first, renamed
from proxy.errors import Failure

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
        param = names.get(named_first(message))
        message = renamed(message, names)
    return {"message": message, "type": kind, "param": param, "code": code}


def refusal(failure: Failure, names: Mapping[str, str] = NO_NAMES) -> JSONResponse:
    """The answer to a failed request; `names` as for `error_object`."""
    headers = dict(failure.headers)
    is_worth_it = failure.retry_after is not None and failure.retry_after <= LONGEST_WAIT_S
    if not is_worth_it:
        headers.pop("Retry-After", None)
    headers["x-should-retry"] = "true" if is_worth_it else "false"
    return JSONResponse({"error": error_object(failure, names)}, failure.status, headers=headers)
