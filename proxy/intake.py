"""Takes in a request's body within two limits: its own bytes, and the bytes of all open requests together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from proxy.errors import Failure


class Intake:
    """Counts the bytes that open requests hold. TorchServe's heap would hang without a bound on their sum."""

    def __init__(self, max_body_bytes: int, max_bytes_in_flight: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_bytes_in_flight = max_bytes_in_flight
        self.bytes_in_flight = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The request's body, counted for as long as the context lasts.

        Raises Failure 413 for a body over the limit, and 503 when the server holds as much as it may.
        """
        reserved = self._reserve(_content_length(request))
        try:
            chunks: list[bytes] = []
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > reserved:
                    self._check(size)
                    reserved += self._reserve(size - reserved)
                chunks.append(chunk)
            yield b"".join(chunks)
        finally:
            self.bytes_in_flight -= reserved

    def _check(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise Failure(
                413,
                f"The request is larger than {self._max_body_bytes} bytes: send smaller or better compressed images.",
            )

    def _reserve(self, size: int) -> int:
        self._check(size)
        if self.bytes_in_flight + size > self._max_bytes_in_flight:
            raise Failure(503, "The server holds as many large requests as it can: try again shortly.", retry_after=5)
        self.bytes_in_flight += size
        return size


def _content_length(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0
