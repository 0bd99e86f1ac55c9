"""Answers that take long: they end when the client disconnects, and can report progress on the way."""

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.errors import Failure
from proxy.shutdown import Drain

COMMENT_S = 15  # seconds of silence after which a stream gets a comment: some proxies cut connections that say nothing


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

    Events are `queued` ({"place": 3}), `progress` ({"step": 3, "of": 50}), then `result` (the JSON body) or `error`
    (the failure body, with its status as `code`). The stream's head is sent at once, so each failure is an event;
    `failure_status` of the scope's state tells Telemetry.

    Args:
        events: as `Admission.generate` yields them.
        as_events: whether the client asked for `text/event-stream`.
        drain: bounds the wait for each event.
        deadline: when to answer 504, on the event loop's clock, plus a second, so the handler's own answer comes first.
        always_200: answer failures with status 200.
    """

    def __init__(
        self,
        events: AsyncGenerator[Queued | Progress | Result, None],
        as_events: bool,
        drain: Drain,
        deadline: float,
        always_200: bool,
    ) -> None:
        self._events = events
        self._as_events = as_events
        self._drain = drain
        self._deadline = deadline + 1
        self._always_200 = always_200
        self._said = 0.0  # when the stream's last bytes were sent, on the event loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            if self._as_events:
                await self._send_events(scope, send)
                return
            try:
                while not isinstance(event := await self._next(), Result):
                    pass
                response = Response(event.body, media_type="application/json")
            except Failure as failure:
                response = failure.response(self._always_200)
            await response(scope, receive, send)

        async with aclosing(self._events):
            await until_disconnect(receive, work)

    async def _next(self) -> Queued | Progress | Result:
        with self._drain.wait_until(self._deadline):
            event = await anext(self._events)
        return event

    async def _send_events(self, scope: Scope, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._said = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._break_silence, send)
            try:
                while not isinstance(event := await self._next(), Result):
                    name = b"queued" if isinstance(event, Queued) else b"progress"
                    await self._say(_event(name, json.dumps(event.fields()).encode()), send)
                last = _event(b"result", event.body)
            except Failure as failure:
                scope["state"]["failure_status"] = failure.status
                last = _event(b"error", json.dumps(failure.event).encode())
            tasks.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": last})

    async def _say(self, data: bytes, send: Send) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._said = anyio.current_time()

    async def _break_silence(self, send: Send) -> None:
        """Sends a comment whenever nothing was sent for COMMENT_S; clients skip it."""
        while True:
            due = self._said + COMMENT_S
            if anyio.current_time() < due:
                await anyio.sleep_until(due)
            else:
                await self._say(b": still here\n\n", send)


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: " + name + b"\ndata: " + data + b"\n\n"
