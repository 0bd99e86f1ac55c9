"""An engine alone: its thread is real, but its model, its requests, its cores and its clock are the test's."""

import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from handlers.engine.loop import Engine
from handlers.engine.pacing import Pacing
from handlers.engine.scheduling import Slot
from handlers.engine.step_batcher import Activity
from handlers.errors import RequestError
from handlers.forward.calls import DenoiserCall
from tests.support.clock import Clock

SOON_S = 60  # for what must happen, however busy the machine is


class Cores:
    def __init__(self) -> None:
        self.left = threading.Event()

    def share(self) -> None:
        self.left.clear()

    def leave(self) -> None:
        self.left.set()


class Job:
    """A job of some steps."""

    def __init__(self, steps: int, has_image: bool) -> None:
        self.steps, self.has_image = steps, has_image
        self.started = self.ended = False
        self.call: DenoiserCall | None = None
        self.error: BaseException | None = None
        self.outputs: list[Any] = []

    def start(self) -> None:
        self.started, self.call = True, DenoiserCall(None, None, None, {})

    def advance(self, output: Any) -> None:
        self.outputs.append(output)
        if len(self.outputs) == self.steps:
            self.cancel()

    def cancel(self, error: BaseException | None = None) -> None:
        self.call, self.ended, self.error = None, True, error


class Request:
    """Stands in for a Generation: it ends with its jobs."""

    def __init__(self, steps: int = 1, jobs: int = 1, has_image: bool = False) -> None:
        self.slots = [Slot(Job(steps, has_image), owner=self) for _ in range(jobs)]  # type: ignore[arg-type]
        self.last_step = 0
        self.queued_since: float | None = 0.0
        self.has_progress = False
        self.ending: bytes | None = None
        self.error: RequestError | None = None
        self.collected = 0
        self.previews: list[Any] = []
        self.was_cancelled = False
        self.ended = threading.Event()

    def start(self, when_pool_is_done: Callable[["Request"], None]) -> None:
        self.announce = when_pool_is_done

    def collect(self) -> None:
        self.collected += 1
        errors = [slot.job.error for slot in self.slots if slot.job.error is not None]
        if errors:
            self.fail(errors[0])
        elif self.slots and all(slot.job.ended for slot in self.slots):
            self.end(b"done")

    def preview(self, slot: Slot, output: Any) -> None:
        self.previews.append(output)

    def fail(self, error: BaseException) -> None:
        assert isinstance(error, RequestError)
        self.end(b"failed", error)

    def end(self, ending: bytes, error: RequestError | None = None) -> None:
        if self.ending is None:
            self.slots, self.error, self.ending = [], error, ending
            self.ended.set()

    def cancel(self) -> None:
        self.slots, self.was_cancelled = [], True

    def release(self) -> None:
        assert self.ending is not None or self.was_cancelled


class Memory:
    def __init__(self) -> None:
        self.releases = 0
        self.broken = False

    def release(self) -> None:
        self.releases += 1

    def is_broken(self) -> bool:
        return self.broken


class Batcher:
    """Answers every call at once; `run` may be replaced."""

    def __init__(self) -> None:
        self.activity, self.memory = Activity(), Memory()
        self.forwards = 0
        self.run: Callable[[list[Slot]], Iterable[Any]] = lambda slots: [(slot, "output") for slot in slots]
        self._counted = threading.Condition()

    def step(self, slots: list[Slot]) -> Iterable[Any]:
        outcomes = self.run(slots) if slots else []
        with self._counted:
            self.forwards += bool(slots)
            self._counted.notify_all()
        return outcomes

    def wait_for(self, forwards: int) -> None:
        with self._counted:
            assert self._counted.wait_for(lambda: self.forwards >= forwards, SOON_S)


class Decoder:
    def __init__(self) -> None:
        self.may_wait: list[bool] = []

    def decode_some(self, slots: list[Slot], may_wait: bool) -> None:
        self.may_wait.append(may_wait)


class Bench:
    """An engine that steps only with a lease, on a clock that stands still."""

    def __init__(self, cores: Cores, pacing: type[Pacing] = Pacing) -> None:
        self.clock, self.cores = Clock(), cores
        self.batcher, self.decoder = Batcher(), Decoder()
        loaded: Any = SimpleNamespace(batcher=self.batcher, decoder=self.decoder)
        self.engine = Engine(lambda: loaded, pacing(self.clock))
        self.until_paused()

    def open(self, *requests: Any) -> None:
        """Opens requests together: the engine sees all of them in its next pass."""
        with_all = threading.Event()
        self.cores.left.clear()
        self.engine.call(lambda: with_all.wait(SOON_S))
        for request in requests:
            self.engine.open(request)
        with_all.set()

    def until_paused(self) -> None:
        assert self.cores.left.wait(SOON_S)

    def end_lease(self) -> None:
        """Has the engine pause. One that a test leaves stepping would take the interpreter from all tests after it."""
        self.clock.now += 1
        self.until_paused()

    def one_pass(self) -> None:
        """One pass of a paused engine."""
        self.until_paused()
        self.cores.left.clear()
        self.engine.call(lambda: None)
        self.until_paused()
