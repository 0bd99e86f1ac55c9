"""Reads a request's body within two limits: its own bytes, and the bytes of all open requests together."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.requests import Request

from proxy.errors import Failure

STALL_S = 30  # seconds without a byte of a body
BODY_S = 600  # for a whole body


class Bodies:
    """Counts the bytes that open requests hold. Without a bound on their sum, TorchServe's heap would hang."""

    def __init__(self, max_body_bytes: int, max_bytes_in_flight: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_bytes_in_flight = max_bytes_in_flight
        self.bytes_in_flight = 0
        self._of_client: Counter[str] = Counter()

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The request's body, counted for as long as the context lasts.

        Raises Failure 415 for a compressed body, 413 for one over the limit, 408 for a stall, 503 when the server holds
        as much as it may, and 429 when half of that belongs to one client.
        """
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # servers disagree on which of the two counts, which allows request smuggling (RFC 9112, 6.3)
            raise Failure(400, "Send Content-Length or Transfer-Encoding, not both.", headers={"Connection": "close"})
        for encoding in ",".join(request.headers.getlist("content-encoding")).split(","):
            if encoding.strip().lower() not in ("", "identity"):
                raise Failure(415, f"Content-Encoding {encoding[:50]} is not supported: send the body uncompressed.")
        self._check(_content_length(request))
        chunks: list[bytes] = []
        size, client = 0, request.state.client
        try:
            async for chunk in _in_time(request.stream()):
                self._check(size + len(chunk))
                # the bytes that have come, not those announced: an idle connection holds no room
                if self.bytes_in_flight + len(chunk) > self._max_bytes_in_flight:
                    raise Failure(
                        503,
                        "The server already holds as many large requests as it can: try again later.",
                        retry_after=5,
                    )
                if 2 * (self._of_client[client] + len(chunk)) > self._max_bytes_in_flight:
                    raise Failure(
                        429, "You send too many large requests at once: wait for one to finish.", retry_after=5
                    )
                size += len(chunk)
                self.bytes_in_flight += len(chunk)
                self._of_client[client] += len(chunk)
                chunks.append(chunk)
            whole = [b"".join(chunks)]
            chunks.clear()
            yield whole.pop()  # not held here as well: a dialect puts another body in its place
        finally:
            self.bytes_in_flight -= size
            self._of_client[client] -= size
            self._of_client += Counter()  # drops the zeros

    def _check(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise Failure(
                413,
                f"The request is larger than {self._max_body_bytes} bytes: send smaller or more compressed images.",
            )


async def _in_time(stream: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The chunks of a body. Raises Failure 408 for a pause of STALL_S, and for a body that takes more than BODY_S."""
    end = anyio.current_time() + BODY_S
    while True:
        try:
            with anyio.fail_at(min(end, anyio.current_time() + STALL_S)):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Failure(
                408,
                f"The body paused for {STALL_S} seconds, or took more than {BODY_S}: send the request without a pause.",
            ) from None
        yield chunk


def _content_length(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isdecimal() else 0
