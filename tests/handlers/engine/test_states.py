"""The engine under any order of what can happen to it, against a model of what must hold (hypothesis).

The engine's thread is real, and stands still between two passes. Requests are real generations, whose pipeline calls a
UNet of arithmetic (tests/support/arithmetic.py): an image of a merged forward must be that of its request alone.
"""

import math
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from handlers.engine.decoder import Decoder
from handlers.engine.generation import Generation
from handlers.engine.loop import Engine
from handlers.engine.pacing import Pacing
from handlers.engine.step_batcher import RowLimit, StepBatcher
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.forward.side_stream import NoSideStream
from handlers.pipelines.noise import generator
from handlers.wire import Failed, Result
from tests.support import generations
from tests.support.arithmetic import Pipeline
from tests.support.engines import SOON_S
from tests.support.generations import images_of, message
from tests.support.samples import decode

ROWS, AREA = 4, 64  # the limit of a forward, in rows of a native area


class ParkedPacing(Pacing):
    """Parks the engine's thread after each pass, until it is let go."""

    engine: Engine[Any]

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._parked, self._go = threading.Event(), threading.Semaphore(0)

    def end_step(self) -> None:
        super().end_step()
        self.engine.call(self._park)

    def _park(self) -> None:
        self._parked.set()
        assert self._go.acquire(timeout=SOON_S)

    def begin(self, engine: Engine[Any]) -> None:
        self.engine = engine
        engine.call(self._park)
        assert self._parked.wait(SOON_S)

    def one_pass(self) -> None:
        self._parked.clear()
        self._go.release()
        assert self._parked.wait(SOON_S)

    def end(self, exits: SimpleQueue[threading.Thread]) -> None:
        """The thread ends as that of a process that dies."""
        self.engine.call(sys.exit)
        self._go.release()
        exits.get(timeout=SOON_S).join(SOON_S)  # so that what it ends with belongs to this test


@dataclass(eq=False)
class Request:
    """What the test knows of a request.

    Attributes:
        may_fail: the statuses that it may end with.
        lines: the last lines that it was given; more than one is a fault.
        engine: that has it; its jobs live in that engine's thread.
    """

    fields: dict[str, Any]
    deadline: float
    generation: Generation
    may_fail: set[int] = field(default_factory=set)
    lines: list[bytes] = field(default_factory=list)
    cancelled: bool = False
    engine: Any = None

    @property
    def is_open(self) -> bool:
        return not self.lines and not self.cancelled


class EngineStates(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.exits: SimpleQueue[threading.Thread] = SimpleQueue()  # the engines' threads that have ended
        self.patches = ExitStack()
        self.patches.enter_context(mock.patch("handlers.engine.loop.Cores", return_value=mock.Mock()))
        self.patches.enter_context(mock.patch("handlers.engine.loop.logger"))
        self.patches.enter_context(mock.patch("handlers.engine.loop.os._exit", self._has_ended))
        self.bench = generations.Bench()
        self.requests: list[Request] = []
        self.engines: list[tuple[Engine[Any], ParkedPacing]] = []
        self.short_of_memory = False  # for more than one call at a time
        self.too_large: set[float] = set()  # prompts whose requests do not fit at all
        self._start_engine()

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            for _, pacing in self.engines:
                pacing.end(self.exits)
            self.patches.close()

    def _has_ended(self, _: int) -> None:
        self.exits.put(threading.current_thread())

    def _start_engine(self) -> None:
        batcher = StepBatcher(RowLimit(1.0, learns=False, fixed=ROWS), self.bench.memory, self._forward)
        loaded = SimpleNamespace(batcher=batcher, decoder=Decoder(self.bench.memory, NoSideStream()))
        pacing = ParkedPacing(self.bench.clock)
        engine: Engine[Any] = Engine(lambda: loaded, pacing)
        pacing.begin(engine)
        self.engines.append((engine, pacing))

    def _forward(self, call: DenoiserCall) -> Any:
        prompts = call.kwargs["encoder_hidden_states"][:, 0].tolist()
        assert call.rows == 1 or call.area <= ROWS * AREA
        if self.too_large & {*prompts} or (self.short_of_memory and call.rows > 1):
            raise torch.OutOfMemoryError("out of memory")
        return forward(call)

    def _open(self, request: Request) -> None:
        """As TorchServe hands it over, or the proxy again."""
        request.generation = self.bench.make(Pipeline(), request.deadline, **request.fields)
        request.engine = self.engines[-1][0]
        request.engine.open(request.generation)

    @rule(
        steps=st.integers(1, 4),
        outputs=st.integers(1, 2),
        width=st.sampled_from([64, 128]),
        seed=st.integers(0, 9),
        patience=st.sampled_from([math.inf, 10]),
        is_valid=st.integers(0, 9).map(bool),
    )
    def submit(self, steps: int, outputs: int, width: int, seed: int, patience: float, is_valid: bool) -> None:
        fields = {"prompt": len(self.requests) + 1, "num_inference_steps": steps, "num_outputs": outputs,
                  "width": width, "height": 64, "seed": seed if is_valid else "x"}  # fmt: skip
        deadline = self.bench.clock() + patience
        request = Request(fields, deadline, self.bench.make(), set() if is_valid else {400})
        self.requests.append(request)
        self._open(request)

    @rule()
    def the_engines_step(self) -> None:
        for _, pacing in self.engines:
            pacing.one_pass()
        self.short_of_memory = False

    @precondition(lambda self: self.bench.pool.waiting)
    @rule(index=st.integers(0, 99))
    def the_pool_works(self, index: int) -> None:
        self.bench.pool.run(index % len(self.bench.pool.waiting))

    def _pick(self, index: int) -> Request:
        opened = [request for request in self.requests if request.is_open]
        return opened[index % len(opened)]

    @precondition(lambda self: any(request.is_open for request in self.requests))
    @rule(index=st.integers(0, 99))
    def a_client_disconnects(self, index: int) -> None:
        request = self._pick(index)
        request.cancelled = True
        request.engine.cancel(request.generation)

    @rule()
    def memory_is_short_for_a_step(self) -> None:
        self.short_of_memory = True

    @precondition(lambda self: any(request.is_open for request in self.requests))
    @rule(index=st.integers(0, 99))
    def a_request_does_not_fit(self, index: int) -> None:
        request = self._pick(index)
        request.may_fail.add(507)
        self.too_large.add(float(request.fields["prompt"]))

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.bench.clock.now += seconds
        for request in self.requests:
            if self.bench.clock() > request.deadline:
                request.may_fail.add(504)

    @rule()
    def a_worker_dies(self) -> None:
        """The proxy sends again what had no answer."""
        for _, pacing in self.engines:
            pacing.end(self.exits)
        self.engines.clear()
        self._start_engine()
        for request in self.requests:
            if request.is_open:
                self._open(request)

    @precondition(lambda self: len(self.engines) < 3)
    @rule()
    def the_archive_is_reloaded(self) -> None:
        """The new worker gets the new requests, the old one finishes its own."""
        self._start_engine()

    @invariant()
    def each_request_is_answered_at_most_once(self) -> None:
        for request in getattr(self, "requests", ()):
            ending = request.generation.ending
            if ending is not None and ending not in request.lines and not request.cancelled:
                request.lines.append(ending)
            assert len(request.lines) <= 1

    @invariant()
    def each_job_has_one_slot_and_each_slot_one_owner(self) -> None:
        for engine, _ in getattr(self, "engines", ()):
            slots = [slot for generation in engine._generations for slot in generation.slots]
            assert len({id(slot) for slot in slots}) == len({id(slot.job) for slot in slots}) == len(slots)
            for generation in engine._generations:
                assert all(slot.owner is generation for slot in generation.slots)

    def finish(self) -> None:
        passes = 0
        while any(request.is_open for request in self.requests):
            passes += 1
            assert passes < 100 * len(self.requests), "a request hangs"
            self.bench.pool.run_all()
            self.the_engines_step()
            self.each_request_is_answered_at_most_once()
        for request in self.requests:
            if not request.cancelled:
                self._check(request)
        self.the_engines_step()
        assert not any(engine._generations for engine, _ in self.engines), "the engine keeps what has ended"

    def _check(self, request: Request) -> None:
        told = message(request.generation)
        if isinstance(told, Failed):
            assert told.status in request.may_fail, told
            return
        assert isinstance(told, Result) and 400 not in request.may_fail
        images = images_of(request.generation)
        assert len(images) == request.fields["num_outputs"]
        for image in images:
            size, steps = (request.fields["width"], 64), request.fields["num_inference_steps"]
            alone = Pipeline()(str(request.fields["prompt"]), steps, *size, generator(image["seed"]))
            assert np.array_equal(decode(image), np.asarray(alone.images[0]))


EngineStates.TestCase.settings = settings(max_examples=15, stateful_step_count=40, deadline=None)
# the thread of an engine that dies ends with an exception
TestEngineStates = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")(
    EngineStates.TestCase
)
