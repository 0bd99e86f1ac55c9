"""Answers that take long: they end when the client disconnects, and can report progress on the way."""

import json
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handlers.wire import Progress, Result
from proxy.errors import Failure
from proxy.shutdown import Drain
from proxy.upstream import Events


def wants_events(accept: str) -> bool:
    """Whether an Accept header names `text/event-stream`, not with weight 0, which means never (RFC 9110, 12.4.2)."""
    for choice in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in choice.split(";"))
        if kind == "text/event-stream":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


async def until_disconnect(receive: Receive, work: Callable[[], Awaitable[None]]) -> None:
    """Runs `work` and cancels it as soon as the client closes its connection. The body must be read before."""
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        await work()
        tasks.cancel_scope.cancel()


class Generated:
    """The contract's answer to a generation, as an ASGI app: one JSON body, or server-sent events.

    Events are `progress` ({"step": 3, "of": 50}), then `result` (the JSON body) or `error` (the failure body). A
    failure before the first event is plain JSON with its own status, even if events were asked for.

    Args:
        events: as `Upstream.generate` yields them.
        as_events: whether the client asked for `text/event-stream`.
        drain: bounds the wait for each event.
        deadline: when to answer 504, on the event loop's clock, plus a second, so the handler's own answer comes first.
        always_200: answer failures with status 200.
    """

    def __init__(self, events: Events, as_events: bool, drain: Drain, deadline: float, always_200: bool) -> None:
        self._events = events
        self._as_events = as_events
        self._drain = drain
        self._deadline = deadline + 1
        self._always_200 = always_200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            try:
                event = await self._next()
                if self._as_events:
                    await self._send_events(event, send)
                    return
                while isinstance(event, Progress):
                    event = await self._next()
                response = Response(event.body, media_type="application/json")
            except Failure as failure:
                response = failure.response(self._always_200)
            await response(scope, receive, send)

        async with aclosing(self._events):
            await until_disconnect(receive, work)

    async def _next(self) -> Progress | Result:
        with self._drain.wait_until(self._deadline):
            event = await anext(self._events)
        return event

    async def _send_events(self, event: Progress | Result, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while isinstance(event, Progress):
                progress = json.dumps(event.fields()).encode()
                await send({"type": "http.response.body", "body": _event(b"progress", progress), "more_body": True})
                event = await self._next()
            last = _event(b"result", event.body)
        except Failure as failure:
            last = _event(b"error", json.dumps(failure.body).encode())
        await send({"type": "http.response.body", "body": last})


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"
