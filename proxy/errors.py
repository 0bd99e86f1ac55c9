"""How a request fails in the proxy: one exception, one JSON body."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse

from handlers.wire import TASKS

ORIGINAL_PATHS = frozenset({"/ping", "/custom_models", *(f"/{task}" for task in TASKS)})


class Failure(Exception):
    """Ends a request with the contract's failure body.

    Args:
        status: the HTTP status.
        message: a sentence that says what was wrong and what to do.
        retry_after: seconds after which to try again.
        headers: more headers of the answer.
    """

    def __init__(
        self, status: int, message: str, retry_after: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after
        self._headers = headers or {}

    @property
    def body(self) -> dict[str, str]:
        return {"status": "failure", "message": self.message}

    @property
    def event(self) -> dict[str, str | int]:
        """The body of a stream's last event, with what the head of an answer would say."""
        event: dict[str, str | int] = {**self.body, "code": self.status}
        return event if self.retry_after is None else {**event, "retry_after": self.retry_after}

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers if self.retry_after is None else {**self._headers, "Retry-After": str(self.retry_after)}

    def response(self, always_200: bool = False) -> JSONResponse:
        """The answer; `always_200` for clients that treat any other status as a broken connection."""
        return JSONResponse(self.body, 200 if always_200 else self.status, headers=dict(self.headers))


def answers_200(request: Request) -> bool:
    """Whether this request's failure is answered with status 200."""
    path = request.scope["path"]
    is_original = path in ORIGINAL_PATHS or path.startswith("/custom/")
    return is_original and bool(request.app.state.settings.failures_as_200)
