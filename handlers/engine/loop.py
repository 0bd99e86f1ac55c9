"""The engine: one thread that does all of torch's work, step after step, for whatever requests are open.

TorchServe's calls only hand over new requests and fetch what there is to say, so a step waits for no round trip
through TorchServe. One thread, because OpenMP keeps a team of workers for every thread that computes, and because a
job's greenlet belongs to the thread that began it (docs/engine.md).
"""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from handlers.engine.decoder import Decoder
from handlers.engine.generation import Generation
from handlers.engine.pacing import STUCK_S, Pacing
from handlers.engine.scheduling import Slot
from handlers.engine.step_batcher import StepBatcher
from handlers.errors import InternalError, OutOfMemory
from handlers.hardware.cores import Cores

logger = logging.getLogger(__name__)

STARTS = 4  # jobs that one step starts at most


class BatcherAndDecoder(Protocol):
    """What the engine needs of what it has loaded."""

    @property
    def batcher(self) -> StepBatcher: ...

    @property
    def decoder(self) -> Decoder: ...


Loaded = TypeVar("Loaded", bound=BatcherAndDecoder)


class Engine(Generic[Loaded]):
    """Runs the open generations. `open`, `cancel` and `wait` are for the thread of TorchServe's calls.

    Args:
        load: loads the model, in the engine's thread. The constructor returns when it has, and raises what it raises.
        pacing: when to step and how long to wait.

    Attributes:
        loaded: what `load` returned.
    """

    def __init__(self, load: Callable[[], Loaded], pacing: Pacing | None = None) -> None:
        self._pacing = pacing or Pacing()
        self._inbox: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._generations: list[Generation] = []
        self._news = threading.Event()  # there is something to say, since the last `wait`
        self._cores = Cores()
        loaded: Future[Loaded] = Future()
        threading.Thread(target=self._run, args=(load, loaded), name="engine", daemon=True).start()
        self.loaded = loaded.result()

    def open(self, generation: Generation) -> None:
        """Takes on a request, and works on it until it has its ending or is cancelled."""
        self._pacing.opened()
        generation.queued_since = self._pacing.clock()
        generation.start(self._announce)
        self.call(lambda: self._generations.append(generation))

    def cancel(self, generation: Generation) -> None:
        """Ends a request that nobody waits for any more, after the step that runs."""

        def drop() -> None:
            generation.cancel()
            generation.release()
            if generation in self._generations:
                self._generations.remove(generation)

        self.call(drop)

    def call(self, work: Callable[[], Any]) -> None:
        """Has the engine's thread run `work` between two steps."""
        self._inbox.put(work)

    def wait(self, has_news: bool) -> None:
        """Lets the engine work for some steps, or until there is something to say.

        Args:
            has_news: whether there is something already, so that it returns at once.
        """
        seconds = self._pacing.begin_call()
        self._wake()
        if not has_news:
            self._news.wait(seconds)
        if self._pacing.is_stuck:
            logger.critical("A step has not ended for %d seconds: the worker gives up.", STUCK_S)
            os._exit(1)
        self._news.clear()
        self._pacing.end_call()

    def _announce(self, generation: Generation) -> None:
        """The pool has finished something: an ending is news, and everything else is the engine's next work."""
        if generation.ending is not None:
            self._pacing.answered()
            self._news.set()
        self._wake()

    def _wake(self) -> None:
        self.call(lambda: None)

    def _run(self, load: Callable[[], Loaded], loaded: Future[Loaded]) -> None:
        try:
            self._cores.share()  # as a rule with the workers of the other tasks, which start at the same time
            worker = load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        self.batcher, self.decoder = worker.batcher, worker.decoder
        loaded.set_result(worker)
        try:
            self._work()
        finally:  # without this thread every request would wait for ever: TorchServe starts another worker
            logger.critical("The engine has ended: the worker gives up.", exc_info=True)
            os._exit(1)

    def _work(self) -> None:
        busy = False
        while True:
            if busy and self._pacing.may_step:
                self._run_inbox(may_block=False)
            else:
                self._cores.leave()
                self._run_inbox(may_block=True)
            self._pacing.begin_step()
            try:
                busy = self._step()
            except BaseException:  # a fault of ours: no request may hang for it
                logger.exception("A step failed.")
                busy = False
                for generation in self._generations:
                    generation.fail(InternalError("This is a fault of the server; its log has the cause."))
            self._pacing.end_step()
            self._drop_finished()

    def _run_inbox(self, may_block: bool) -> None:
        """Runs everything in the inbox; if there is nothing else to do, waits for something."""
        try:
            while True:
                self._inbox.get(block=may_block)()
                may_block = False
        except Empty:
            pass

    def _step(self) -> bool:
        """Moves every request on by one step at most. Returns whether there is more to do at once."""
        # 1. collect what the pool has finished: parsed requests get their jobs
        self._collect()
        # 2. start jobs: few, and one init image for the VAE, so that no other request's step waits for more
        for slot in self._next_to_start():
            self._start(slot)
        if self._generations:
            self._cores.share()
        # 3. execute one merged forward, and let each job that was in it run on to its next pause
        waiting = [slot for slot in self._running() if slot.waits_for_denoiser]
        begin = self._pacing.clock()
        for slot, outcome in self.batcher.step(waiting):
            if isinstance(outcome, Exception):
                slot.job.cancel(outcome)
                continue
            slot.owner.preview(slot, outcome)
            slot.job.advance(outcome)
        if waiting:
            self._pacing.learn(self._pacing.clock() - begin)
        # 4. decode the latents of some finished jobs
        self.decoder.decode_some(self._running(), may_wait=not waiting)
        # 5. collect: finished images go to the pool, failures end their requests
        self._collect()
        if self._pacing.progress_is_due and any(generation.has_progress for generation in self._generations):
            self._news.set()
        return bool(self._running())

    def _next_to_start(self) -> list[Slot]:
        """At most STARTS jobs, round-robin over requests; at most one of them has an init image."""
        numbered = [numbered for generation in self._generations for numbered in enumerate(generation.slots)]
        # a request's first job comes before any request's second one
        slots = [slot for _, slot in sorted(numbered, key=itemgetter(0))]
        waiting = [slot for slot in slots if not slot.job.started and not slot.job.ended]
        image = next((slot for slot in waiting if slot.job.has_image), None)
        return [slot for slot in waiting if slot is image or not slot.job.has_image][:STARTS]

    def _start(self, slot: Slot) -> None:
        activity, generation = self.batcher.activity, slot.owner
        if generation.queued_since is not None:
            activity.queue_seconds += self._pacing.clock() - generation.queued_since
            activity.started_requests += 1
            generation.queued_since = None
        slot.job.start()

    def _collect(self) -> None:
        for generation in self._generations:
            generation.collect()

    def _running(self) -> list[Slot]:
        return [slot for generation in self._generations for slot in generation.slots if not slot.job.ended]

    def _drop_finished(self) -> None:
        """Forgets the generations that have their ending."""
        ended = [generation for generation in self._generations if generation.ending is not None]
        if not ended:
            return
        if any(isinstance(generation.error, InternalError) for generation in ended) and self.batcher.memory.is_broken():
            logger.critical("The GPU does no more work for this process: the worker gives up.")
            os._exit(1)
        self._generations = [generation for generation in self._generations if generation.ending is None]
        for generation in ended:
            generation.release()
        if any(isinstance(generation.error, OutOfMemory) for generation in ended):
            self.batcher.memory.release()
        if any(generation.error is not None for generation in ended):  # images were announced by the pool
            self._pacing.answered()
            self._news.set()
