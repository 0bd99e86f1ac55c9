"""The engine: one thread that does all of torch's work, step after step, for whatever requests are open.

TorchServe's calls only hand over new requests and fetch what there is to say, so a step waits for no round trip
through TorchServe. One thread, because OpenMP keeps a team of workers for every thread that computes, and because a
job's greenlet belongs to the thread that began it (docs/architecture.md).
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from handlers.engine.decoder import Decoder
from handlers.engine.generation import Generation
from handlers.engine.step_batcher import Slot, StepBatcher
from handlers.errors import InternalError, OutOfMemory
from handlers.hardware.cores import Cores

logger = logging.getLogger(__name__)

STARTS = 4  # jobs that one tick starts at most
# For how many steps TorchServe waits for an answer, and with it a new request for being let in, and its bounds in
# seconds: a round trip takes 3 ms from a step on two cores. It is shorter for a client that wants to see the progress.
ROUND_TRIP_STEPS = 5
ROUND_TRIP_S = (0.02, 0.2)
STUCK_S = 1200  # after which a step will never end, and the worker with it, so that TorchServe starts another
LEASE_S = 0.05  # for how long steps go on while nobody asks for news: the last client may have gone away


class Engine:
    """Runs the open generations. `open`, `cancel` and `wait` are for the thread of TorchServe's calls.

    Args:
        load: loads the model, in the engine's thread. The constructor returns when it has, and raises what it raises.
    """

    def __init__(self, load: Callable[[], tuple[StepBatcher, Decoder]]) -> None:
        self._inbox: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self._generations: list[Generation] = []
        self._news = threading.Event()  # something to say, since the last `wait`
        self._attended_until = 0.0  # when the lease ends, on the monotonic clock
        self._step_seconds = 0.0
        self._step_began: float | None = None
        self._cores = Cores()
        self._answered = False  # somebody was, since the last `wait`
        self._last_return = 0.0  # of `wait`, on the monotonic clock
        loaded: Future[None] = Future()
        threading.Thread(target=self._run, args=(load, loaded), name="engine", daemon=True).start()
        loaded.result()

    def open(self, generation: Generation) -> None:
        """Takes on a request, which it works on until the request has its ending or is cancelled."""
        generation.when_pool_is_done = self._announce
        self._answered = False  # here is the next one
        self._inbox.put(lambda: self._generations.append(generation))

    def cancel(self, generation: Generation) -> None:
        """Ends a request that nobody waits for any more, after the step that runs."""

        def drop() -> None:
            generation.cancel()
            if generation in self._generations:
                self._generations.remove(generation)

        self._inbox.put(drop)

    def wait(self, has_news: bool) -> None:
        """Lets the engine work for some steps, or until there is something to say, and for LEASE_S after that.

        Args:
            has_news: whether there is already, so that it returns at once.
        """
        low, high = ROUND_TRIP_S
        # who has just got an answer may have the next request under way
        seconds = low if self._answered else max(low, min(high, ROUND_TRIP_STEPS * self._step_seconds))
        self._answered = False
        self._attended_until = time.monotonic() + seconds + LEASE_S
        self._wake()
        if not has_news:
            self._news.wait(seconds)
        began = self._step_began
        if began is not None and time.monotonic() > began + STUCK_S:
            logger.critical("A step has not ended for %d seconds: the worker gives up.", STUCK_S)
            os._exit(1)
        self._news.clear()
        self._last_return = time.monotonic()
        self._attended_until = self._last_return + LEASE_S

    def _announce(self, generation: Generation) -> None:
        """Called by the pool when it has done something for `generation`."""
        if generation.ending is not None:
            self._answered = True
            self._news.set()
        self._wake()

    def _wake(self) -> None:
        self._inbox.put(lambda: None)

    def _run(self, load: Callable[[], tuple[StepBatcher, Decoder]], loaded: Future[None]) -> None:
        try:
            self._cores.share()  # as a rule with the workers of the other tasks, which start at the same time
            self.batcher, self.decoder = load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            self._work()
        finally:  # without this thread every request would wait for ever: TorchServe starts another worker
            logger.critical("The engine has ended: the worker gives up.", exc_info=True)
            os._exit(1)

    def _work(self) -> None:
        busy = False
        while True:
            if busy and time.monotonic() < self._attended_until:
                self._take_in(may_block=False)
            else:
                self._cores.leave()
                self._take_in(may_block=True)
            self._step_began = time.monotonic()
            try:
                busy = self._tick()
            except BaseException:  # a fault of ours: nobody's request may hang for it
                logger.exception("A step failed.")
                busy = False
                for generation in self._generations:
                    if generation.ending is None:
                        generation.fail(InternalError("A fault of the server, which its log describes."))
            self._step_began = None
            self._let_go()

    def _take_in(self, may_block: bool) -> None:
        """Does what lies in the inbox; with nothing else to do, waits for something."""
        try:
            while True:
                self._inbox.get(block=may_block)()
                may_block = False
        except Empty:
            pass

    def _let_go(self) -> None:
        """Forgets the generations that have their ending."""
        ended = [generation for generation in self._generations if generation.ending is not None]
        if not ended:
            return
        self._generations = [generation for generation in self._generations if generation.ending is None]
        if any(isinstance(generation.error, OutOfMemory) for generation in ended):
            self.batcher.memory.release()
        if any(generation.error is not None for generation in ended):  # pictures were announced by the pool
            self._answered = True
            self._news.set()

    def _tick(self) -> bool:
        """Moves everybody on by one step at most. Returns whether there is more to do at once."""
        self._poll()
        # one init image and a few text encodings, and one decoding, so that nobody's next step waits for more
        encoded = False
        for slot in [slot for slot in self._running() if not slot.job.started][:STARTS]:
            if not (encoded and slot.job.has_image):
                encoded = encoded or slot.job.has_image
                self._begin(slot)
        if self._generations:
            self._cores.share()
        waiting = [slot for slot in self._running() if slot.waits_for_unet]
        begin = time.monotonic()
        for slot, outcome in self.batcher.step(waiting):
            if isinstance(outcome, Exception):
                slot.job.cancel(outcome)
                continue
            slot.owner.preview(slot, outcome)
            slot.job.advance(outcome)
        if waiting:
            self._step_seconds += 0.2 * (time.monotonic() - begin - self._step_seconds)
        self.decoder.decode_some(self._running(), may_wait=not waiting)
        self._poll()
        if time.monotonic() > self._last_return + ROUND_TRIP_S[0] and any(g.has_progress for g in self._generations):
            self._news.set()
        return bool(self._running())

    def _begin(self, slot: Slot) -> None:
        activity, generation = self.batcher.activity, slot.owner
        if generation.queued_since is not None:
            activity.queue_seconds += time.monotonic() - generation.queued_since
            activity.started_requests += 1
            generation.queued_since = None
        slot.job.start()

    def _poll(self) -> None:
        for generation in self._generations:
            generation.poll()

    def _running(self) -> list[Slot]:
        return [slot for generation in self._generations for slot in generation.slots if not slot.job.ended]
