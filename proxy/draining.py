"""An orderly end: what is being drawn is finished, up to a limit, and nothing new is begun."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import anyio
import uvicorn

from proxy.errors import Failure

RETRY_S = 10  # until the server, or another in its place, may be there again


class Drain:
    """Counts what is in flight; once it has begun, nothing new is let in."""

    def __init__(self) -> None:
        self.begun = False
        self.in_flight = 0
        self._broken_off = False
        self._waiting: set[anyio.CancelScope] = set()

    def check(self) -> None:
        """Raises Failure 503 once the end has begun."""
        if self.begun:
            raise Failure(503, "The server is being shut down: try again in a moment.", RETRY_S)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request for as long as the context lasts. Raises as `check` does."""
        self.check()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def wait_until(self, deadline: float) -> Iterator[None]:
        """Around a wait for a picture. Raises Failure 504 at the deadline (event loop's clock), 503 when broken off."""
        with anyio.CancelScope(deadline=deadline) as scope:
            self._waiting.add(scope)
            try:
                yield
            finally:
                self._waiting.discard(scope)
        if scope.cancelled_caught and self._broken_off:
            raise Failure(503, "The server was shut down before the picture was done: try again.", RETRY_S)
        if scope.cancelled_caught:
            raise Failure(504, "The picture was not done within the server's time limit: ask for less at a time.")

    def break_off(self) -> None:
        """Ends every wait for a picture."""
        self._broken_off = True
        for scope in self._waiting:
            scope.cancel()


class DrainingServer(uvicorn.Server):
    """uvicorn, but that the first signal begins a drain: it listens on, and ends when nothing is in flight any more.

    Args:
        limit_s: seconds after which what is still in flight is broken off. A second signal breaks it off at once.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, limit_s: float) -> None:
        config.timeout_graceful_shutdown = 1
        super().__init__(config)
        self._drain = drain
        self._limit_s = limit_s
        self._end = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain.begun or not self._drain.in_flight:
            super().handle_exit(sig, frame)
        else:
            self._captured_signals.append(sig)
            self._end = time.monotonic() + self._limit_s
        self._drain.begun = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls it ten times a second."""
        if self._end and (not self._drain.in_flight or time.monotonic() > self._end):
            self.should_exit = True
        if self.should_exit:
            self._drain.break_off()
        return await super().on_tick(counter)
