"""The answer to a request that failed, in the form that its path's clients read."""

from starlette.requests import Request
from starlette.responses import Response

from proxy.dialects import a1111_errors, openai_errors
from proxy.errors import Failure, answers_200


def refused(request: Request, failure: Failure) -> Response:
    path = request.scope["path"]
    if path.startswith(openai_errors.PATHS):
        return openai_errors.refusal(failure)
    if path.startswith(a1111_errors.PATHS):
        return a1111_errors.refusal(failure)
    return failure.response(answers_200(request))
