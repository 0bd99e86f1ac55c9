"""One open request without an engine or a model: the test runs the pool's work, moves the clock and steps the jobs."""

import base64
import io
import json
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.config import HandlerConfig
from handlers.engine.generation import Generation, GenerationState, IncomingRequest, Shared
from handlers.engine.timings import Timings
from handlers.errors import DeadlineExceeded, InternalError, InvalidRequest, NotFinite, OutOfMemory
from handlers.forward.calls import DecodeCall
from handlers.hardware.memory import Memory
from handlers.pipelines.loading import ServedPipeline
from handlers.request.fields import ModelDefaults
from handlers.wire import Failed, Progress, RequestHead, Result, read_line
from tests.support.clock import Clock
from tests.support.jobs import CPU

PARSING, RUNNING, ENCODING, ENDED = GenerationState
SIDE, STEPS = 64, 3


class Pool(ThreadPoolExecutor):
    """Holds its work until the test runs it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.has_run = 0

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: work(*arguments, **options)))
        return future

    def begin(self, index: int = 0) -> Callable[[], None]:
        """Begins a piece of work as a thread would, so that it cannot be cancelled any more. Returns the rest of it."""
        future, work = self.waiting.pop(index)
        if not future.set_running_or_notify_cancel():
            return lambda: None

        def finish() -> None:
            self.has_run += 1
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        return finish

    def run(self, index: int = 0) -> None:
        self.begin(index)()

    def run_all(self) -> None:
        while self.waiting:
            self.run()


class Pipeline:
    """Calls its UNet and its VAE as stock pipelines do. The image has one colour, whose red is the seed.

    Args:
        refusal: raised before the first step.
        fault: raised after the first step.
    """

    vae_scale_factor = 8
    num_timesteps = 0

    def __init__(self, refusal: BaseException | None = None, fault: BaseException | None = None) -> None:
        self.refusal, self.fault = refusal, fault
        self.unet = object()
        self.vae = SimpleNamespace(dtype=torch.float32, encode=None, decode=None)
        self.scheduler = SimpleNamespace(set_timesteps=lambda *_, **__: None)

    def __call__(self, prompt: str, num_inference_steps: int, width: int, height: int, generator: Any) -> Any:
        if self.refusal:
            raise self.refusal
        self.num_timesteps = num_inference_steps
        latents = torch.zeros(1, 4, height // 8, width // 8)
        for step in range(num_inference_steps):
            latents = self.unet(latents, step)  # type: ignore[operator]
            if self.fault:
                raise self.fault
        self.vae.decode(latents)
        image = Image.new("RGB", (width, height), (generator.initial_seed(), 0, 0))
        return SimpleNamespace(images=[image], nsfw_content_detected=[False])


class Bench:
    """Opens generations on one pool and one clock, and steps their jobs as the engine does."""

    def __init__(self) -> None:
        self.pool, self.clock = Pool(), Clock()
        self.memory = Memory(CPU, (SIDE // 8) ** 2)
        self.announced: list[GenerationState] = []  # the state at each announcement of the pool

    def open(
        self,
        pipeline: Pipeline | None = None,
        deadline: float = math.inf,
        progress: bool = False,
        preview_map: Any = None,
        **fields: Any,
    ) -> Generation:
        data = {name: str(value).encode() for name, value in ({"prompt": "a house", "seed": 7} | fields).items()}
        head = RequestHead("txt2img", request_id="r", deadline=deadline, wants_progress=progress)
        defaults = ModelDefaults(num_inference_steps=STEPS, width=SIDE, height=SIDE)
        served = ServedPipeline("a model", pipeline or Pipeline(), defaults, (), preview_map)
        shared = Shared(HandlerConfig(), self.memory, self.pool, Timings(), self.clock)
        generation = Generation(IncomingRequest("txt2img", data, head), served, shared)
        generation.start(lambda announced: self.announced.append(announced.state))
        return generation

    def opened_in(self, state: GenerationState, **options: Any) -> Generation:
        """A generation that has come to `state`; its next work for the pool is not done yet."""
        generation = self.open(**options)
        if state in (RUNNING, ENCODING, ENDED):
            self.pool.run_all()
            generation.collect()
        if state in (ENCODING, ENDED):
            while generation.state is RUNNING:
                step(generation)
        if state is ENDED:
            self.pool.run_all()
        assert generation.state is state
        return generation


def advance(slot: Any) -> None:
    """Starts a job, or answers the call that it is paused at."""
    job = slot.job
    if not job.started:
        job.start()
    elif not job.ended:
        job.advance((job.call.sample,) if isinstance(job.call, DecodeCall) else job.call.sample)


def step(generation: Generation) -> None:
    """Each job runs on to its next pause."""
    for slot in list(generation.slots):
        advance(slot)
    generation.collect()


def message(generation: Generation) -> Progress | Result | Failed | None:
    assert generation.ending is not None
    return read_line(generation.ending)


def images_of(generation: Generation) -> list[dict[str, Any]]:
    result = message(generation)
    assert isinstance(result, Result)
    images: list[dict[str, Any]] = json.loads(result.body)["images"]
    return images


def red_of(image: dict[str, Any]) -> int:
    return int(np.asarray(Image.open(io.BytesIO(base64.b64decode(image["base64"]))))[0, 0, 0])


def steps_told(generation: Generation) -> list[tuple[int, int]]:
    lines = [read_line(line) for line in generation.progress().splitlines()]
    return [(line.step, line.of) for line in lines if isinstance(line, Progress)]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_request_goes_through_every_state(bench: Bench) -> None:
    generation = bench.open()
    generation.collect()
    assert generation.state is PARSING and not generation.slots  # the pool has not begun
    bench.pool.run()
    assert generation.state is PARSING and bench.announced == [PARSING]
    generation.collect()
    assert generation.state is RUNNING and len(generation.slots) == 1
    for _ in range(STEPS + 1):  # the start, and the steps
        step(generation)
        assert generation.state is RUNNING and not bench.pool.waiting
    step(generation)  # the decoding
    assert generation.state is ENCODING and len(bench.pool.waiting) == 1 and generation.ending is None
    generation.collect()
    assert generation.state is ENCODING and len(bench.pool.waiting) == 1  # an image is encoded once
    bench.pool.run()
    # the pool ends it: no step comes in between
    assert bench.announced[1:] == [ENDED] and generation.error is None
    assert [(image["seed"], red_of(image)) for image in images_of(generation)] == [(7, 7)]
    ending = generation.ending
    generation.collect()
    assert generation.state is ENDED and generation.ending is ending


def test_images_are_in_order_though_they_end_in_another(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING, num_outputs=3)
    for slot in reversed(list(generation.slots)):
        while not slot.job.ended:
            advance(slot)
        generation.collect()
        assert generation.state is (ENCODING if slot is generation.slots[0] else RUNNING)
    for index in (1, 1, 0):  # of the jobs 2, 1 and 0: so 1, 0, and 2 at last
        assert generation.ending is None
        bench.pool.run(index)
    assert [(image["seed"], red_of(image)) for image in images_of(generation)] == [(7, 7), (8, 8), (9, 9)]


def test_a_job_alone_may_end_and_be_encoded_while_others_run(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING, num_outputs=2)
    while not generation.slots[0].job.ended:
        advance(generation.slots[0])
    generation.collect()
    bench.pool.run_all()
    generation.collect()
    assert generation.state is RUNNING and generation.ending is None
    while generation.state is RUNNING:
        step(generation)
    bench.pool.run_all()
    assert len(images_of(generation)) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps must be a whole number"),
        ({"prompt": "x" * 10_001}, "prompt is longer than 10000 characters"),
    ],
)
def test_a_bad_request_ends_with_its_sentence(bench: Bench, fields: dict[str, Any], words: str) -> None:
    generation = bench.open(**fields)
    bench.pool.run()
    assert generation.state is PARSING  # the engine ends it
    generation.collect()
    assert generation.state is ENDED and isinstance(generation.error, InvalidRequest) and not generation.slots
    failed = message(generation)
    assert isinstance(failed, Failed) and failed.status == 400 and words in failed.message


def test_a_request_that_is_cancelled_before_it_is_parsed_never_is(bench: Bench) -> None:
    generation = bench.open()
    generation.cancel()
    bench.pool.run_all()
    generation.collect()
    assert bench.pool.has_run == 0
    assert generation.state is ENDED and generation.ending is None and not generation.slots


def test_a_request_that_is_cancelled_while_it_is_parsed_gets_no_jobs(bench: Bench) -> None:
    generation = bench.open()
    finish = bench.pool.begin()
    generation.cancel()
    finish()
    generation.collect()
    assert bench.pool.has_run == 1
    assert generation.state is ENDED and generation.ending is None and not generation.slots


def test_a_request_that_is_cancelled_ends_its_jobs(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING, num_outputs=2)
    jobs = [slot.job for slot in generation.slots]
    jobs[0].start()  # and the other one has not begun
    generation.cancel()
    assert [job.ended for job in jobs] == [True, True] and [job.error for job in jobs] == [None, None]
    generation.collect()
    assert generation.state is ENDED and not generation.slots and not bench.pool.waiting
    generation.cancel()  # a second time does nothing


def test_the_pool_may_finish_the_image_of_a_request_that_was_cancelled(bench: Bench) -> None:
    generation = bench.opened_in(ENCODING)
    generation.cancel()
    bench.pool.run_all()
    generation.collect()
    assert generation.state is ENDED and generation.error is None


@pytest.mark.parametrize(
    ("pipeline", "status", "words"),
    [
        (Pipeline(refusal=ValueError("at most 50 steps.")), 400, "cannot generate with these values: at most 50 steps"),
        (Pipeline(fault=ValueError("a secret")), 500, "this is a fault of the server"),
        (Pipeline(refusal=KeyError("a secret")), 500, "this is a fault of the server"),
        (Pipeline(refusal=torch.OutOfMemoryError("a secret")), 507, "try a smaller one"),
        (Pipeline(fault=torch.OutOfMemoryError("a secret")), 507, "try a smaller one"),
        (Pipeline(fault=RuntimeError("CUDA out of memory: a secret")), 507, "try a smaller one"),
        (Pipeline(fault=NotFinite()), 500, "try a lower guidance_scale"),
    ],
)
def test_what_a_pipeline_raises_ends_the_request(bench: Bench, pipeline: Pipeline, status: int, words: str) -> None:
    generation = bench.opened_in(RUNNING, pipeline=pipeline, num_outputs=2)
    jobs = [slot.job for slot in generation.slots]
    while generation.state is RUNNING:
        step(generation)
    failed = message(generation)
    assert isinstance(failed, Failed) and failed.status == status
    assert words in failed.message and "secret" not in failed.message
    assert generation.error is not None and generation.error.status == status
    assert all(job.ended for job in jobs) and not generation.slots and not bench.pool.waiting


def test_one_job_that_fails_ends_the_others_of_its_request(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING, num_outputs=2)
    first, second = (slot.job for slot in generation.slots)
    step(generation)
    second.cancel(torch.OutOfMemoryError("the engine's outcome of a forward"))
    generation.collect()
    assert isinstance(generation.error, OutOfMemory) and first.ended and first.error is None


def test_an_image_that_does_not_fit_gets_no_jobs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.hardware.memory.available_bytes", lambda _: 2**20)
    bench.memory = Memory(CPU, (SIDE // 8) ** 2, row_bytes=2**20)
    generation = bench.open(width=512, height=512)
    bench.pool.run_all()
    generation.collect()
    assert generation.state is ENDED and isinstance(generation.error, OutOfMemory) and not generation.slots
    assert "An image of 512 x 512 pixels needs" in generation.error.message


@pytest.mark.parametrize(
    ("error", "kind"), [(MemoryError(), OutOfMemory), (OSError("an encoder's fault"), InternalError)]
)
def test_an_image_that_cannot_be_encoded_ends_the_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: type[Exception]
) -> None:
    def fail(image: Image.Image) -> str:
        raise error

    monkeypatch.setattr("handlers.request.images.encode_png", fail)
    generation = bench.opened_in(ENCODING)
    bench.pool.run_all()
    assert generation.state is ENCODING  # the pool's announcement wakes the engine, which ends it
    generation.collect()
    assert generation.state is ENDED and type(generation.error) is kind


@pytest.mark.parametrize("state", [PARSING, RUNNING, ENCODING])
def test_the_deadline_ends_a_request_in_every_state(bench: Bench, state: GenerationState) -> None:
    generation = bench.opened_in(state, deadline=bench.clock.now + 10)
    jobs = [slot.job for slot in generation.slots]
    bench.clock.now += 10
    generation.collect()
    assert generation.state is state  # to the second
    bench.clock.now += 0.001
    generation.collect()
    assert generation.state is ENDED and isinstance(generation.error, DeadlineExceeded)
    assert all(job.ended for job in jobs) and not generation.slots
    failed = message(generation)
    assert isinstance(failed, Failed) and failed.status == 504


def test_a_request_without_a_deadline_waits_for_ever(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING)
    bench.clock.now += 10.0**9
    generation.collect()
    assert generation.state is RUNNING


def test_an_image_that_comes_after_the_deadline_does_not_undo_it(bench: Bench) -> None:
    generation = bench.opened_in(ENCODING, deadline=bench.clock.now)
    finish = bench.pool.begin()
    bench.clock.now += 1
    generation.collect()
    ending = generation.ending
    finish()
    assert isinstance(generation.error, DeadlineExceeded) and generation.ending is ending
    assert generation.state is ENDED


def test_a_deadline_that_passes_after_the_image_does_not_undo_it(bench: Bench) -> None:
    generation = bench.opened_in(ENDED, deadline=bench.clock.now)
    bench.clock.now += 1
    generation.collect()
    generation.fail(InternalError("a fault in a step"))
    assert generation.error is None and len(images_of(generation)) == 1


def test_the_last_image_may_come_while_the_engine_looks_at_the_deadline(bench: Bench) -> None:
    class Overtaken(Clock):
        def __call__(self) -> float:
            if self.now > 1000:
                bench.pool.run_all()
            return super().__call__()

    bench.clock = Overtaken()
    generation = bench.opened_in(ENCODING, deadline=1000)
    bench.clock.now += 1
    generation.collect()
    assert generation.state is ENDED and generation.error is None and len(images_of(generation)) == 1


def test_progress_is_told_in_order_and_once(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING, progress=True, num_inference_steps=6)
    told = [steps_told(generation)]
    for _ in range(3):  # the start, and two steps
        step(generation)
    assert generation.has_progress
    told += [steps_told(generation), steps_told(generation)]
    assert not generation.has_progress
    while generation.state is RUNNING:
        step(generation)
        told.append(steps_told(generation))
    bench.pool.run_all()
    told.append(steps_told(generation))
    assert told[:3] == [[], [(1, 6), (2, 6)], []]
    assert [line for lines in told for line in lines] == [(done, 6) for done in range(1, 7)]


def test_progress_that_was_never_asked_for_is_complete_at_the_end(bench: Bench) -> None:
    generation = bench.opened_in(ENDED, progress=True)
    assert steps_told(generation) == [(done, STEPS) for done in range(1, STEPS + 1)]


def test_progress_is_that_of_the_image_furthest_behind(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING, progress=True, num_outputs=2)
    step(generation)
    for _ in range(STEPS):
        advance(generation.slots[1])
    generation.collect()
    assert not generation.has_progress and steps_told(generation) == []
    advance(generation.slots[0])
    generation.collect()
    assert steps_told(generation) == [(1, STEPS)]


def test_a_client_that_wants_no_progress_gets_none(bench: Bench) -> None:
    generation = bench.opened_in(RUNNING)
    step(generation)
    step(generation)
    assert not generation.has_progress and generation.progress() == b""


class Previews:
    """A preview map that tells of the step that it was made at, unless it is broken."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.looks = broken, 0

    def look(self, call: Any, output: Any, guidance_scale: float) -> tuple[int]:
        self.looks += 1
        if self.broken:
            raise RuntimeError("not like any map")
        return (call.timestep,)

    def render(self, timestep: int) -> str:
        return f"preview {timestep}"


def previewed_step(generation: Generation) -> None:
    for slot in generation.slots:
        if slot.job.call is not None:
            generation.preview(slot, slot.job.call.sample)
    step(generation)


def test_a_preview_comes_with_the_newest_step_and_one_is_made_at_a_time(bench: Bench) -> None:
    previews = Previews()
    generation = bench.opened_in(RUNNING, progress=True, preview_map=previews, preview="true", num_outputs=2)
    step(generation)
    previewed_step(generation)
    previewed_step(generation)  # the pool is behind: no second one
    assert previews.looks == 1 and len(bench.pool.waiting) == 1
    bench.pool.run_all()
    lines = [read_line(line) for line in generation.progress().splitlines()]
    assert lines == [Progress(1, STEPS), Progress(2, STEPS, "preview 0")]


def test_a_map_that_fails_costs_the_previews_alone(bench: Bench) -> None:
    previews = Previews(broken=True)
    generation = bench.opened_in(RUNNING, progress=True, preview_map=previews, preview="true")
    step(generation)
    while generation.state is RUNNING:
        previewed_step(generation)
    bench.pool.run_all()
    assert previews.looks == 1 and len(images_of(generation)) == 1


@pytest.mark.parametrize("options", [{"preview": "true"}, {"progress": True}, {"progress": True, "preview": "false"}])
def test_previews_are_for_a_client_that_wants_them_with_its_progress(bench: Bench, options: dict[str, Any]) -> None:
    previews = Previews()
    generation = bench.opened_in(RUNNING, preview_map=previews, **options)
    step(generation)
    previewed_step(generation)
    assert previews.looks == 0


def test_the_pool_can_be_waited_for(bench: Bench) -> None:
    generation = bench.open(prompt="x" * 10_001)
    with pytest.raises(TimeoutError):
        generation.wait_until_parsed(timeout_s=0)
    bench.pool.run()
    generation.wait_until_parsed(timeout_s=0)  # it has failed to: `collect` says how
    generation.collect()
    generation.wait_until_parsed(timeout_s=0)
