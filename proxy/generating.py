"""The one way of every request for images, in whichever dialect: admitted, read, translated, generated, answered."""

import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import anyio
from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from handlers.wire import Progress, RequestHead, Result
from proxy.admission import Admission, Queued
from proxy.bodies import Bodies
from proxy.custom_models import CustomModels
from proxy.dialects.forms import model_of, native_body
from proxy.errors import Failure, answers_200
from proxy.job_routes import KINDS, accepted, chosen_id, kind_of, prefers_job
from proxy.jobs import Job, Jobs
from proxy.loading import Loading
from proxy.served import Served
from proxy.settings import Settings
from proxy.shutdown import Drain
from proxy.streaming import Answer, Generated, NativeAnswer, wants_events
from proxy.upstream import Upstream

MAX_JOINED_BYTES = 100_000_000  # of the answer to several orders, about as of one


@dataclass(frozen=True)
class Order:
    """What an archive is asked for: the native request's body with its Content-Type.

    Attributes:
        name: by which its client asks about it while it waits; empty: by its X-Request-Id, if that is the client's own.
        others: make those that follow it, whose images are in the same answer, each when its turn comes, so that at
            most two bodies are there.
    """

    task: str
    archive: str
    body: bytes
    form_type: str
    name: str = ""
    others: "Sequence[Callable[[], Order]]" = ()

    @classmethod
    def of(cls, task: str, archive: str, fields: Mapping[str, str | bytes], name: str = "") -> "Order":
        """From native fields, in which files are bytes."""
        return cls(task, archive, *native_body(fields), name)


class Dialect(Protocol):
    """How the requests of one kind of client are read.

    Attributes:
        name: for metrics and the log.
        is_job: whether each request becomes a job, also without `Prefer: respond-async`.
    """

    name: str
    is_job: bool

    async def archive(self, request: Request) -> str:
        """The archive whose queue must have room before the body is read. Raises Failure."""

    async def read(self, request: Request, body: bytes) -> tuple[Order, Answer]:
        """The native request, and how its answer is told. Raises Failure."""


class Native:
    """The contract's own requests for a task, with another model if the path or the field `model` names one."""

    name = "native"
    is_job = False

    def __init__(self, task: str) -> None:
        self._task = task

    async def archive(self, request: Request) -> str:
        url_path = request.path_params.get("url_path")
        if url_path is None:
            return main_archive(request, self._task)
        custom: CustomModels = request.app.state.custom_models
        return custom.archive(url_path)

    async def read(self, request: Request, body: bytes) -> tuple[Order, Answer]:
        form_type = request.headers.get("content-type", "")
        archive = await self.archive(request)
        if model := model_of(body, form_type):
            named = await archive_of(request, self._task, model)
            if "url_path" in request.path_params and named != archive:
                raise Failure(400, "model names another model than the address: leave out the field.")
            archive = named
        order = Order(self._task, archive, body, form_type)
        as_events = wants_events(request.headers.get("accept", ""))
        return order, NativeAnswer(as_events, answers_200(request))


class NativeJob:
    """`POST /v1/jobs`: a native body, with its task as `kind`."""

    name = "jobs"
    is_job = True

    async def archive(self, request: Request) -> str:
        kind = request.query_params.get("kind")
        return main_archive(request, kind if kind in KINDS else KINDS[0])

    async def read(self, request: Request, body: bytes) -> tuple[Order, Answer]:
        kind, form_type = kind_of(request, body), request.headers.get("content-type", "")
        archive = await archive_of(request, kind, model_of(body, form_type))
        order = Order(kind, archive, body, form_type)
        return order, NativeAnswer(as_events=False, always_200=False)


class Generate:
    """A route that generates. It is an ASGI app, since it holds the body until the end."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        state = request.app.state
        settings: Settings = state.settings
        bodies: Bodies = state.bodies
        admission: Admission = state.admission
        drain: Drain = state.drain
        jobs: Jobs = state.jobs
        limit_s = settings.deadline_s or math.inf
        deadline, deadline_on_clock = anyio.current_time() + limit_s, time.time() + limit_s
        scope["state"]["dialect"] = self._dialect.name
        archive = await self._dialect.archive(request)
        async with AsyncExitStack() as held:
            held.enter_context(drain.request())
            admission.check(archive, request.state.client)
            body = await held.enter_async_context(bodies.body(request))
            order, answer = await self._dialect.read(request, body)
            job = Job(order.task, order.archive, self._dialect.name, request.state.request_id.decode("latin-1"))
            if self._dialect.is_job or prefers_job(request):
                job = await _start(job, request, body, order, answer, (deadline, deadline_on_clock), held)
                await accepted(request, job)(scope, receive, send)
                return
            del body  # of a dialect, the native one is enough
            chosen = order.name or chosen_id(request)
            events = generation(request, order, answer.as_events or bool(chosen), deadline_on_clock)
            if chosen:
                events = jobs.follow(request.state.owner, chosen, job, events, answer)
            await Generated(events, answer, drain, deadline)(scope, receive, send)


async def _start(
    job: Job,
    request: Request,
    body: bytes,
    order: Order,
    answer: Answer,
    deadlines: tuple[float, float],
    held: AsyncExitStack,
) -> Job:
    """Starts a job, or finds the one that its Idempotency-Key has started before. Raises Failure.

    Args:
        deadlines: on the event loop's clock, and in seconds since the epoch.
        held: what the job takes over and needs until its end.
    """
    jobs: Jobs = request.app.state.jobs
    admission: Admission = request.app.state.admission
    owner: str = request.state.owner
    if answer.as_events:
        raise Failure(400, "A stream cannot be a job: leave out the stream, or Prefer: respond-async.")
    key = request.headers.get("idempotency-key", "")
    sent = _comparable(request, body) if key else b""
    earlier = jobs.repeated(owner, key, sent)
    if earlier is None:
        admission.check(order.archive, request.state.client)
        events = generation(request, order, True, deadlines[1])
        await jobs.start(job, owner, events, answer, deadlines[0] + 1, held, key, sent)
    job = earlier or job
    if chosen := order.name or chosen_id(request):
        jobs.name(owner, chosen, job)
    return job


def _comparable(request: Request, body: bytes) -> bytes:
    """What a request asks for: libraries that send a form again give it another boundary."""
    content_type = request.headers.get("content-type", "").encode("latin-1")
    _, options = parse_options_header(content_type)
    address: bytes = request.scope["path"].encode() + b"?" + request.scope["query_string"]
    boundary = options.get(b"boundary", b"")
    return address + b"\n" + (body.replace(b"--" + boundary, b"--") if boundary else body)


def generation(
    request: Request, order: Order, wants_progress: bool, deadline: float
) -> AsyncGenerator[Queued | Progress | Result, None]:
    """What an order's generation tells, which begins when it is the client's turn. Closing it cancels the request.

    Its `others` follow in the same turn.

    Args:
        deadline: when the client stops waiting, in seconds since the epoch.
    """
    loading: Loading = request.app.state.loading
    admission: Admission = request.app.state.admission

    def events_of(one: Order) -> AsyncGenerator[Queued | Progress | Result, None]:
        head = RequestHead(
            task=one.task,
            form_type=one.form_type,
            request_id=request.state.request_id.decode("latin-1"),
            deadline=deadline,
            wants_progress=wants_progress,
        )
        return loading.generate(one.archive, head, one.body)

    events = _joined(order, events_of) if order.others else events_of(order)
    return admission.generate(order.archive, request.state.client, events)


async def _joined(
    order: Order, events_of: Callable[[Order], AsyncGenerator[Queued | Progress | Result, None]]
) -> AsyncGenerator[Queued | Progress | Result, None]:
    """What an order and its `others` tell, one after the other, with one result.

    Their steps count on; an order that has not begun counts as many as the one that runs.
    """
    results: list[Result] = []
    size = steps_before = 0
    makers = [lambda: order, *order.others]
    for done, make in enumerate(makers):
        steps = 0
        try:
            async with aclosing(events_of(make())) as events:
                async for event in events:
                    if isinstance(event, Progress):
                        steps = event.of
                        of = steps_before + steps * (len(makers) - done)
                        yield replace(event, step=steps_before + event.step, of=of)
                    elif isinstance(event, Queued):
                        yield event
                    else:
                        results.append(event)
                        size += len(event.body)
        except Failure as failure:
            if failure.status in (400, 413):
                failure.message += f" That was number {done + 1} of {len(makers)} images."
            raise
        if size > MAX_JOINED_BYTES:
            raise Failure(413, "The images are too large for one answer: send fewer of them at a time.")
        steps_before += steps
    yield await anyio.to_thread.run_sync(Result.joined, results)  # parsing large ones takes its time


def main_archive(request: Request, task: str) -> str:
    """The archive that does a task with the main model."""
    upstream: Upstream = request.app.state.upstream
    return upstream.archive_of(task)


async def archive_of(request: Request, task: str, model: str) -> str:
    """The archive that does a task with the model of a name; the main one if it is empty. Raises UnknownModel 400."""
    served: Served = request.app.state.served
    return await served.archive(model, task)
