"""What a handler answers through TorchServe: lines, each a message."""

from collections.abc import AsyncIterator

import httpx

from handlers.wire import Failed, Progress, Result, read_line
from proxy.errors import Failure
from proxy.frontend_failures import WorkerDied


async def lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The answer's lines without their ends; a large last line is joined only once."""
    parts: list[bytes] = []
    async for chunk in answer.aiter_raw():
        *complete, rest = chunk.split(b"\n")
        for line in complete:
            yield b"".join([*parts, line])
            parts.clear()
        if rest:
            parts.append(rest)


def message(line: bytes) -> Progress | Result | None:
    """The message of a line. Raises Failure for an error, and for a line that no handler wrote."""
    try:
        event = read_line(line)
    except ValueError:
        raise WorkerDied from None
    if isinstance(event, Failed):
        raise Failure(event.status, event.message)
    return event
