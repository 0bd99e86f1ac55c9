"""Forwards on tensors without a model: the rows that go into one, and those that come out of it."""

import torch

from handlers.engine.step_batcher import MAX_ROWS, STEP_SECONDS, RowLimit, StepBatcher
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import merge, split
from handlers.hardware.memory import GUIDED_ROWS, Memory
from tests.handlers.engine.test_scheduling import call, double, slot


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


def test_a_merged_forward_that_fails_costs_only_the_request_at_fault() -> None:
    def poisoned(sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        if bool((sample < 0).any()):
            raise torch.OutOfMemoryError("no room")
        return double(sample, timestep)

    slots = [slot(unet=poisoned) for _ in range(3)]
    bad = slots[1].job.call
    assert bad is not None
    slots[1].job.call = DenoiserCall(poisoned, -bad.sample, bad.timestep, {})
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
