"""What a client is told while its request runs: each step once, and a preview now and then."""

from typing import Any

import pytest

from handlers.engine.generation import Generation
from handlers.wire import Progress, read_line
from tests.support.generations import ENDED, RUNNING, STEPS, Bench, advance, images_of, step, steps_told


@pytest.fixture
def bench() -> Bench:
    return Bench()


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

    looks_back = False

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.looks = broken, 0

    def look(self, call: Any, output: Any, guidance_scale: float) -> Any:
        self.looks += 1
        if self.broken:
            raise RuntimeError("not like any map")
        return call.timestep

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
