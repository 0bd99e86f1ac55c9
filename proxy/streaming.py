"""Answers that take long: they end when the client disconnects, and can report progress on the way."""

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Protocol

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.errors import Failure
from proxy.shutdown import Drain

EVENT_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
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


class Answer(Protocol):
    """How a dialect says what a generation tells: as one response, or as the bytes of server-sent events.

    Attributes:
        as_events: whether the client asked for events.
        head_at_once: whether a stream's head is sent before anything is known. Otherwise a failure before the first
            step, such as a wrong field, still has its own status.
        names: by native field, the name by which the client sent it.
    """

    as_events: bool
    head_at_once: bool
    names: Mapping[str, str]

    def native(self, result: Result) -> Mapping[str, Any]:
        """The native answer, with the dialect's own warnings, for a job. Raises as `response`."""

    def response(self, result: Result) -> Response:
        """Raises Failure for a result that the dialect counts as one."""

    def refusal(self, failure: Failure) -> Response: ...

    def event(self, event: Queued | Progress) -> bytes:
        """Empty if there is nothing to say."""

    def last(self, result: Result) -> bytes:
        """The events that end a stream. Raises as `response`."""

    def error(self, failure: Failure) -> bytes: ...


class NativeAnswer:
    """The contract's answer: the result's JSON as it is, or events.

    Events are `queued` ({"place": 3}), `progress` ({"step": 3, "of": 50}), then `result` (the JSON body) or `error`
    (the failure body, with its status as `code`). The stream's head is sent at once, so each failure is an event.

    Args:
        always_200: answer failures with status 200.
    """

    head_at_once = True
    names: Mapping[str, str] = MappingProxyType({})

    def __init__(self, as_events: bool, always_200: bool) -> None:
        self.as_events = as_events
        self._always_200 = always_200

    def native(self, result: Result) -> Mapping[str, Any]:
        native: dict[str, Any] = json.loads(result.body)
        return native

    def response(self, result: Result) -> Response:
        return Response(result.body, media_type="application/json")

    def refusal(self, failure: Failure) -> Response:
        return failure.response(self._always_200)

    def event(self, event: Queued | Progress) -> bytes:
        name = "queued" if isinstance(event, Queued) else "progress"
        return event_bytes(name, json.dumps(event.fields()).encode())

    def last(self, result: Result) -> bytes:
        return event_bytes("result", result.body)

    def error(self, failure: Failure) -> bytes:
        return event_bytes("error", json.dumps(failure.event).encode())


class Generated:
    """The answer to a generation, as an ASGI app that ends when its client disconnects.

    `failure_status` of the scope's state tells Telemetry what a stream's head could not say.

    Args:
        events: as `Admission.generate` yields them.
        answer: how they are said.
        drain: bounds the wait for each event.
        deadline: when to answer 504, on the event loop's clock, plus a second, so the handler's own answer comes first.
    """

    def __init__(
        self,
        events: AsyncGenerator[Queued | Progress | Result, None],
        answer: Answer,
        drain: Drain,
        deadline: float,
    ) -> None:
        self._events = events
        self._answer = answer
        self._drain = drain
        self._deadline = deadline + 1
        self._has_begun = False  # whether the stream's head was sent
        self._said = 0.0  # when the stream's last bytes were sent, on the event loop's clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def work() -> None:
            if self._answer.as_events:
                await self._send_events(scope, receive, send)
                return
            try:
                while not isinstance(event := await self._next(), Result):
                    pass
                response = self._answer.response(event)
            except Failure as failure:
                response = self._answer.refusal(failure)
            await response(scope, receive, send)

        async with aclosing(self._events):
            await until_disconnect(receive, work)

    async def _next(self) -> Queued | Progress | Result:
        with self._drain.wait_until(self._deadline):
            event = await anext(self._events)
        return event

    async def _send_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._said = anyio.current_time()
        if self._answer.head_at_once:
            await self._say(b"", send)
        failure = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._break_silence, send)
            try:
                while not isinstance(event := await self._next(), Result):
                    if isinstance(event, Queued) and event.restarts:
                        await self._say(b": restarting\n\n", send)
                    elif (said := self._answer.event(event)) or isinstance(event, Progress):
                        await self._say(said, send)
                last = self._answer.last(event)
            except Failure as one:
                failure, last = one, self._answer.error(one)
            tasks.cancel_scope.cancel()
        if failure is not None and not self._has_begun:
            await self._answer.refusal(failure)(scope, receive, send)
            return
        if failure is not None:
            scope["state"]["failure_status"] = failure.status
        await self._begin(send)
        await send({"type": "http.response.body", "body": last})

    async def _begin(self, send: Send) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})

    async def _say(self, data: bytes, send: Send) -> None:
        await self._begin(send)
        if data:
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


def event_bytes(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
