"""Failures as clients of AUTOMATIC1111's web UI read them: `{"error", "detail", "body", "errors"}`."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from proxy.dialects.refused import NO_NAMES, named_first, renamed
from proxy.errors import Failure

PATHS = ("/sdapi/", "/internal/", "/controlnet/")
BASIC = 'Basic realm="the API key as password", charset="UTF-8"'


def refusal(failure: Failure, names: Mapping[str, str] = NO_NAMES) -> JSONResponse:
    """The answer to a failed request. A wrong field is a 422, as there.

    Args:
        names: by native field, the name by which the client sent it.
    """
    status, headers = 422 if failure.status == 400 else failure.status, dict(failure.headers)
    if status == 401:
        headers["WWW-Authenticate"] = BASIC
    first = named_first(failure.message)
    sentence = renamed(names.get(first, first) + failure.message[len(first) :], names)
    body = {"error": "HTTPException", "detail": sentence, "body": "", "errors": sentence}
    return JSONResponse(body, status, headers=headers)
