"""Jobs: requests for images that run without a connection, and are asked about until they have ended."""

import asyncio
import base64
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.dialects.openai_errors import error_object
from proxy.dialects.refused import Refused
from proxy.errors import Failure
from proxy.kept import Kept, KeptImage
from proxy.shutdown import Drain
from proxy.streaming import Answer
from proxy.telemetry import Counts

logger = logging.getLogger(__name__)

PATH = "/v1/jobs"
MAX_KEY = 255  # characters of an Idempotency-Key
JOB, REQUEST = "job_", "req_"  # ids begin with these
LINGER_S = 20  # that a server which is being stopped waits for the images of a job to be fetched
MAX_FOLLOWED = 1000  # requests that can be asked about beside their connections
ENDED = ("completed", "failed", "cancelled")


@dataclass(eq=False)
class Job:
    """One request; `tell` moves it on.

    Attributes:
        dialect: by name; with `request_id`, for the log.
        status: `queued`, `in_progress`, or one of ENDED.
        place: in the queue, 1 is the next; 0 while it runs.
        loads: the name of its model while that is being loaded.
        images: without their files, which are in `files`.
        preview: the newest one, a JPEG; None once the images are there.
        changed: set when the status changes, and then replaced.
        waiting: cancelled with the request whose client waits for its answer.
    """

    kind: str
    archive: str
    dialect: str = ""
    request_id: str = ""
    id: str = ""
    status: str = "queued"
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    completed_at: float | None = None
    place: int = 0
    loads: str = ""
    step: int = 0
    steps: int = 0
    images: list[dict[str, Any]] = field(default_factory=list)
    files: list[KeptImage] = field(default_factory=list)
    preview: KeptImage | None = None
    warnings: list[str] = field(default_factory=list)
    error: Mapping[str, Any] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: anyio.CancelScope | None = None
    _stepped: tuple[float, float] = (0.0, 0.0)  # when the first step and the last one ended, on the monotonic clock
    _first: int = 0  # the number of the first step that was told

    def tell(self, event: Queued | Progress) -> None:
        if isinstance(event, Queued):
            self.place, self.loads = event.place, event.loads
            if event.restarts:
                self.step, self.started_at = 0, None
                self.enter("queued")
            return
        now = time.monotonic()
        if self.status == "queued":
            self.place, self.loads, self.started_at = 0, "", time.time()
            self._first, self._stepped = event.step, (now, now)
            self.enter("in_progress")
        self.step, self.steps, self._stepped = event.step, event.of, (self._stepped[0], now)
        if event.preview is not None:
            self.preview = KeptImage(base64.b64decode(event.preview), "image/jpeg")

    def finish(self, native: Mapping[str, Any]) -> None:
        """Takes the images over from the native answer."""
        for i, image in enumerate(native["images"]):
            self.files.append(KeptImage(base64.b64decode(image["base64"]), image["mime_type"]))
            told = {name: value for name, value in image.items() if name not in ("base64", "mimetype")}
            self.images.append({"index": i, **told, "url": f"{PATH}/{self.id}/images/{i}"})
        self.warnings = list(native.get("warnings", ()))

    def enter(self, status: str) -> None:
        """Enters a status, unless it has ended."""
        if self.status in ENDED:
            return
        self.status = status
        if status in ENDED:
            self.completed_at, self.preview = time.time(), None
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def eta_s(self) -> float | None:
        """Seconds that the rest of its steps takes, by those that it has taken; None before the second one."""
        taken = self.step - self._first
        if self.status != "in_progress" or taken < 1:
            return None
        first, last = self._stepped
        return max(0.0, (last - first) / taken * (self.steps - self.step) - (time.monotonic() - last))


class Cancelled(Failure):
    """A request was cancelled beside its connection, whose client still waits."""


class Jobs:
    """Starts jobs and keeps them, within the bounds of `kept`."""

    def __init__(self, kept: Kept, drain: Drain, counts: Counts, node: str = "") -> None:
        self._kept, self._drain, self._counts = kept, drain, counts
        self._followed = Kept(MAX_FOLLOWED, 0, node)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._by_key: dict[tuple[str, str], tuple[str, bytes]] = {}  # owner and key: the id, and what was sent
        self._by_name: dict[tuple[str, str], str] = {}  # owner and X-Request-Id: the id

    async def aclose(self) -> None:
        """Cancels what still runs."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def repeated(self, owner: str, key: str, sent: bytes) -> Job | None:
        """The job that this owner has started before with this Idempotency-Key.

        Raises Refused 400 for a key that is too long, 422 if something else was sent with it.
        """
        if len(key) > MAX_KEY:
            raise Refused(400, f"Idempotency-Key has more than {MAX_KEY} characters.")
        name, digest = self._by_key.get((owner, key), ("", b""))
        if not key or not self._kept.holds(name):
            return None
        if digest != hashlib.sha256(sent).digest():
            raise Refused(422, "This Idempotency-Key came with another request: use a new one.")
        return self._kept.get(name, Job, owner)

    async def start(
        self,
        job: Job,
        owner: str,
        events: AsyncGenerator[Queued | Progress | Result, None],
        answer: Answer,
        deadline: float,
        held: AsyncExitStack,
        key: str,
        sent: bytes,
    ) -> None:
        """Runs a job. Raises Failure 429 if there is room for no more.

        Args:
            deadline: on the event loop's clock.
            held: what the job needs until its end, such as its body.
            key: its Idempotency-Key, or empty.
            sent: what came with the key.
        """
        job.id = self._kept.add(owner, job, JOB)
        held.enter_context(self._counts.in_flight.track_inprogress())
        task = self._tasks[job.id] = asyncio.create_task(self._run(job, events, answer, deadline, held.pop_all()))
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))
        if key:
            self._remember(job, owner, key, sent)
        await asyncio.sleep(0)  # a task that is cancelled before it has begun would release nothing

    def _remember(self, job: Job, owner: str, key: str, sent: bytes) -> None:
        self._by_key = {known: one for known, one in self._by_key.items() if self._kept.holds(one[0])}
        self._by_key[owner, key] = job.id, hashlib.sha256(sent).digest()

    def name(self, owner: str, name: str, job: Job) -> None:
        """Lets the owner find a job by the X-Request-Id of its request, too; the newest one that has it."""
        self._by_name = {known: one for known, one in self._by_name.items() if self._kept_of(one).holds(one)}
        self._by_name[owner, name] = job.id

    def find(self, owner: str, name: str) -> Job:
        """A job by its id, or by its X-Request-Id. Raises as `Kept.get`."""
        name = self._by_name.get((owner, name), name)
        return self._kept_of(name).get(name, Job, owner)

    def open(self, owner: str, dialect: str) -> list[Job]:
        """The owner's jobs of a dialect that have not ended, and requests that are followed; the newest is the last."""
        jobs = [job for kept in (self._followed, self._kept) for job in kept.of(owner, Job)]
        found = [job for job in jobs if job.dialect == dialect and job.status not in ENDED]
        return sorted(found, key=lambda job: job.created_at)

    async def follow(
        self, owner: str, name: str, job: Job, events: AsyncGenerator[Queued | Progress | Result, None], answer: Answer
    ) -> AsyncGenerator[Queued | Progress | Result, None]:
        """`events` of a request whose client waits for the answer, and asks about it meanwhile by its X-Request-Id.

        Raises Cancelled once it is cancelled.
        """
        job.id = self._followed.add(owner, job, REQUEST)
        self.name(owner, name, job)
        status = "cancelled"
        try:
            async with aclosing(events):
                while job.status not in ENDED:
                    with anyio.CancelScope() as job.waiting:
                        event = await anext(events)
                        if isinstance(event, Result):
                            job.enter("completed")
                        else:
                            job.tell(event)
                    if not job.waiting.cancelled_caught:
                        yield event
                if job.status == "cancelled":
                    raise Cancelled(409, "This request was cancelled.")
        except Failure as failure:
            status, job.error = "failed", error_object(failure, answer.names)
            raise
        finally:
            job.enter(status)
            self._followed.end(job.id, 0)

    def cancel(self, job: Job) -> None:
        """Ends a job, if it has not ended; TorchServe drops its request at its next call."""
        job.enter("cancelled")
        if task := self._tasks.get(job.id):
            task.cancel()
        if job.waiting is not None:
            job.waiting.cancel()

    def expires_at(self, job: Job) -> int | None:
        left = self._kept_of(job.id).expires_in(job.id)
        return None if left is None else int(time.time() + left)

    def _kept_of(self, name: str) -> Kept:
        return self._followed if name.startswith(REQUEST) else self._kept

    async def _run(
        self,
        job: Job,
        events: AsyncGenerator[Queued | Progress | Result, None],
        answer: Answer,
        deadline: float,
        held: AsyncExitStack,
    ) -> None:
        status, size = "cancelled", 0
        try:
            async with held:
                async with aclosing(events):
                    while True:
                        with self._drain.wait_until(deadline):
                            event = await anext(events)
                        if isinstance(event, Result):
                            break
                        job.tell(event)
                job.finish(answer.native(event))
                size = sum(len(file.data) for file in job.files)
                self._kept.check(size)
                status = "completed"
                job.enter(status)
                await self._linger()
        except Failure as failure:
            status, job.error = "failed", error_object(failure, answer.names)
        except Exception:
            logger.exception("Job %s failed.", job.id)
            fault = Failure(500, "This is a fault of the server; its log has the cause.")
            status, job.error = "failed", error_object(fault)
        finally:
            if status != "completed":
                job.images, job.files, size = [], [], 0
            job.enter(status)
            self._kept.end(job.id, size)
            self._report(job)

    async def _linger(self) -> None:
        """Holds up the end of a server that is being stopped, and would take the images with it."""
        if self._drain.begun:
            with suppress(Failure), self._drain.wait_until(anyio.current_time() + LINGER_S):
                await anyio.sleep_forever()

    def _report(self, job: Job) -> None:
        """Counts a job that has ended, and logs it: the line of its request was written when it began."""
        self._counts.jobs.labels(job.dialect, job.status).inc()
        fields = {
            "request_id": job.request_id, "job": job.kind, "dialect": job.dialect, "status": job.status,
            "seconds": round((job.completed_at or 0) - job.created_at, 4),
        }  # fmt: skip
        logger.info("job %(job)s %(status)s %(seconds)ss %(request_id)s %(dialect)s", fields, extra={"fields": fields})


async def until_changed(job: Job, seconds: float) -> None:
    """Returns when the status changes, when so many seconds have passed, or at once if the job has ended."""
    if job.status not in ENDED:
        with anyio.move_on_after(seconds):
            await job.changed.wait()
