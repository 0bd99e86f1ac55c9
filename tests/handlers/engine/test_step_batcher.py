"""The scheduler on tensors without a model: whose rows go into a forward, and whose come out of it."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from handlers.engine.scheduling import Slot, schedule
from handlers.engine.step_batcher import MAX_ROWS, STEP_SECONDS, RowLimit, StepBatcher
from handlers.forward.calls import UNetCall
from handlers.forward.merging import merge, split
from handlers.hardware.memory import GUIDED_ROWS, Memory


@dataclass
class Request:
    last_step: int = 0


@dataclass
class Job:
    call: UNetCall | None


def double(sample: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
    """A UNet whose rows tell of their own timestep."""
    return (sample * 2 + timestep.reshape(-1, 1, 1, 1),)


def call(rows: int = 2, size: int = 8, timestep: float = 1.0, unet: Any = double, **kwargs: Any) -> UNetCall:
    return UNetCall(unet, torch.ones(rows, 4, size, size), torch.tensor(timestep), kwargs)


def slot(owner: Request | None = None, **kwargs: Any) -> Slot:
    return Slot(Job(call(**kwargs)), owner or Request())  # type: ignore[arg-type]


def batcher_of(rows: int) -> StepBatcher:
    return StepBatcher(RowLimit(1.0, learns=False, fixed=rows), Memory(torch.device("cpu"), 64))


def test_calls_of_the_same_shape_run_in_one_forward() -> None:
    batcher = batcher_of(32)
    slots = [slot(timestep=1.0), slot(timestep=5.0), slot(rows=1, timestep=9.0)]
    outcomes = batcher.step(slots)
    assert [(outcome[0].shape[0], float(outcome[0].mean())) for _, outcome in outcomes] == [
        (2, 3.0),
        (2, 7.0),
        (1, 11.0),
    ]
    assert (batcher.activity.unet_forwards, batcher.activity.merged_forwards, batcher.activity.unet_rows) == (1, 1, 5)


def test_a_call_alone_reaches_the_unet_untouched() -> None:
    alone = call(encoder_hidden_states=torch.ones(2, 3))
    assert merge([alone]) is alone


def test_dicts_of_tensors_are_merged_and_split() -> None:
    calls = [call(added_cond_kwargs={"text_embeds": torch.full((2, 5), float(i))}, eta=None) for i in range(3)]
    merged = merge(calls)
    assert merged.kwargs["added_cond_kwargs"]["text_embeds"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert merged.kwargs["eta"] is None and merged.timestep.shape == (6,)
    parts = split((merged.sample, merged.timestep), calls)
    assert [tuple(part.shape[0] for part in parts[i]) for i in range(3)] == [(2, 2)] * 3


def test_the_request_that_waited_longest_goes_first_and_none_starves() -> None:
    batcher = batcher_of(4)
    slots = [slot() for _ in range(33)]
    served = [s for _ in range(17) for s, _ in batcher.step(slots)]
    assert len(served) == 34 and set(map(id, served)) == set(map(id, slots))


def test_a_request_of_many_images_takes_turns_with_a_request_of_one() -> None:
    batcher = batcher_of(4)
    many, one = Request(), Request()
    slots = [*(slot(many) for _ in range(8)), slot(one)]
    for _ in range(4):
        batcher.step(slots)
    assert slots[-1].last_step >= 3
    assert len({s.last_step for s in slots[:8]}) > 1


def test_two_shapes_alternate() -> None:
    batcher = batcher_of(32)
    slots = [slot(size=8), slot(size=16)]
    assert [len(batcher.step(slots)) for _ in range(4)] == [1, 1, 1, 1]
    assert {s.last_step for s in slots} == {3, 4}


@pytest.mark.parametrize(("size", "expected"), [(8, 4), (16, 1), (64, 1)])
def test_larger_images_fill_a_forward_sooner(size: int, expected: int) -> None:
    assert len(schedule([slot(size=size) for _ in range(6)], max_rows=8, native_area=64)) == expected


def test_a_merged_forward_that_fails_costs_only_the_request_at_fault() -> None:
    def poisoned(sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        if bool((sample < 0).any()):
            raise torch.OutOfMemoryError("no room")
        return double(sample, timestep)

    slots = [slot(unet=poisoned) for _ in range(3)]
    bad = slots[1].job.call
    assert bad is not None
    slots[1].job.call = UNetCall(poisoned, -bad.sample, bad.timestep, {})
    outcomes = [outcome for _, outcome in batcher_of(32).step(slots)]
    assert isinstance(outcomes[1], torch.OutOfMemoryError)
    assert float(outcomes[0][0].mean()) == float(outcomes[2][0].mean()) == 3.0


def test_nothing_to_do_is_no_forward() -> None:
    batcher = batcher_of(4)
    assert batcher.step([]) == [] and batcher.activity.unet_forwards == 0


def test_the_row_limit_keeps_a_forward_within_its_time() -> None:
    assert RowLimit(STEP_SECONDS / 10, learns=True).rows == 10
    assert (RowLimit(100.0, learns=True).rows, RowLimit(1e-9, learns=True).rows) == (GUIDED_ROWS, MAX_ROWS)


def test_the_row_limit_learns_on_a_cpu_alone_and_never_where_it_is_configured() -> None:
    cpu, gpu, configured = RowLimit(1.0, True), RowLimit(1.0, False), RowLimit(1.0, True, fixed=5)
    for limit in (cpu, gpu, configured):
        for _ in range(50):
            limit.learn(seconds=STEP_SECONDS, rows=16)
    assert (15 <= cpu.rows <= 16, gpu.rows, configured.rows) == (True, GUIDED_ROWS, 5)


def test_every_forward_is_learnt_from_in_rows_of_native_size() -> None:
    batcher = StepBatcher(RowLimit(1.0, learns=True), Memory(torch.device("cpu"), 64))
    seen = []
    batcher.limit.learn = lambda seconds, rows: seen.append(rows)  # type: ignore[method-assign]
    batcher.step([slot(size=16)])
    assert seen == [8.0]
