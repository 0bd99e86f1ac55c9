"""One open request alone: its states, and everything that can end it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from handlers.engine.generation import GenerationState
from handlers.errors import DeadlineExceeded, InternalError, InvalidRequest, NotFinite, OutOfMemory
from handlers.hardware.memory import Memory
from handlers.wire import Failed
from tests.support.clock import Clock
from tests.support.generations import (
    ENCODING,
    ENDED,
    PARSING,
    RUNNING,
    SIDE,
    STEPS,
    Bench,
    Pipeline,
    advance,
    images_of,
    message,
    red_of,
    step,
)  # fmt: skip
from tests.support.jobs import CPU


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


def test_another_image_may_come_while_one_is_checked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of the pool finish the two images at once: only one ends the request, and with both."""

    def overtaken(images: Sequence[Any], max_response_bytes: int) -> None:
        if bench.pool.waiting:
            bench.pool.run()
        lengths.append(len(images))

    lengths: list[int] = []
    monkeypatch.setattr("handlers.engine.generation.check_answer", overtaken)
    generation = bench.opened_in(ENCODING, num_outputs=2)
    bench.pool.run()
    assert lengths == [2, 1] and len(images_of(generation)) == 2


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


def test_images_of_a_request_that_was_cancelled_are_not_encoded(bench: Bench) -> None:
    generation = bench.opened_in(ENCODING, num_outputs=2)
    parsed = bench.pool.has_run
    generation.cancel()
    bench.pool.run_all()
    assert bench.pool.has_run == parsed


def test_the_pool_may_finish_the_image_of_a_request_that_was_cancelled(bench: Bench) -> None:
    generation = bench.opened_in(ENCODING)
    finish = bench.pool.begin()
    generation.cancel()
    finish()
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
    def fail(image: Image.Image, *_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("handlers.engine.finishing.encode", fail)
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


def test_the_pool_can_be_waited_for(bench: Bench) -> None:
    generation = bench.open(prompt="x" * 10_001)
    with pytest.raises(TimeoutError):
        generation.wait_until_parsed(timeout_s=0)
    bench.pool.run()
    generation.wait_until_parsed(timeout_s=0)  # it has failed to: `collect` says how
    generation.collect()
    generation.wait_until_parsed(timeout_s=0)
