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
    """Counts what is in flight; once it has begun, the server is not ready any more, and soon lets nothing new in."""

    def __init__(self) -> None:
        self.begun = False
        self.refuses_at = 0.0  # on the monotonic clock: load balancers take a moment to see that it is not ready
        self.in_flight = 0
        self._broken_off = False
        self._waiting: set[anyio.CancelScope] = set()

    def check(self) -> None:
        """Raises Failure 503 once the end has begun."""
        if self.begun:
            raise Failure(503, "The server is being shut down: try again in a moment.", RETRY_S)

    @property
    def refuses(self) -> bool:
        return self.begun and time.monotonic() >= self.refuses_at

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request for as long as the context lasts. Raises as `check` does, once nothing new is let in."""
        if self.refuses:
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
            if self._broken_off:
                scope.cancel()
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
        leave_s: seconds for which new requests are still let in, while readiness already fails.
        limit_s: seconds after those, at which what is still in flight is broken off. A second signal does so at once.
    """

    def __init__(self, config: uvicorn.Config, drain: Drain, leave_s: float, limit_s: float) -> None:
        config.timeout_graceful_shutdown = 1
        super().__init__(config)
        self._drain = drain
        self._leave_s = leave_s
        self._limit_s = limit_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain.begun or not (self._leave_s or self._drain.in_flight):
            super().handle_exit(sig, frame)
        else:
            self._captured_signals.append(sig)
            self._drain.refuses_at = time.monotonic() + self._leave_s
            # a client that keeps its connection would come back to this server in place of another
            self.config.encoded_headers.append((b"connection", b"close"))
        self._drain.begun = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls it ten times a second."""
        drain = self._drain
        if drain.refuses and (not drain.in_flight or time.monotonic() > drain.refuses_at + self._limit_s):
            self.should_exit = True
        if self.should_exit:
            drain.break_off()
        return await super().on_tick(counter)
