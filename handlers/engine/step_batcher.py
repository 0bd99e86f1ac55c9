"""One merged forward of the denoiser a step, for all running jobs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.engine.scheduling import Credits, Outcome, Slot, calls_of, fill, take_turn, together_or_alone
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward, merge, split
from handlers.hardware.memory import GUIDED_ROWS, Memory

# How long one merged forward may take: a new request waits at most so long for its first step. The requests in it wait
# no longer than they would for their turns, one after the other.
STEP_SECONDS = 1.0
MAX_ROWS = 32  # more rows than any device that was measured gains from


@dataclass
class Activity:
    """Counters since the start, for `GET /models`."""

    unet_forwards: int = 0
    merged_forwards: int = 0  # forwards that served more than one request
    unet_rows: int = 0
    steps: int = 0  # of all images
    started_requests: int = 0
    queue_seconds: float = 0.0  # that those waited for their first step


@dataclass
class RowLimit:
    """How many rows one forward may have, counted at the native size, so that it takes about STEP_SECONDS.

    On a CPU it goes on learning from every forward: at the start the workers still compete for the cores. On an
    accelerator the time of a forward is not known without waiting for the device, so the first measurement stays.

    Args:
        seconds_per_row: as measured at the start.
        learns: whether later forwards count.
        fixed: a limit that is configured instead; 0 = none.
    """

    seconds_per_row: float
    learns: bool
    fixed: int = 0

    @property
    def rows(self) -> int:
        return self.fixed or max(GUIDED_ROWS, min(MAX_ROWS, int(STEP_SECONDS / self.seconds_per_row)))

    def learn(self, seconds: float, rows: float) -> None:
        """Takes a forward of `rows` rows of native size into account."""
        if self.learns:
            self.seconds_per_row += 0.2 * (seconds / rows - self.seconds_per_row)


@dataclass
class StepBatcher:
    """Runs the scheduled calls as one forward, within the limits of time and memory; `run` is a forward."""

    limit: RowLimit
    memory: Memory
    run: Callable[[DenoiserCall], Any] = forward
    activity: Activity = field(default_factory=Activity)
    _step: int = 0
    _credits: Credits = field(default_factory=dict)

    def step(self, slots: Sequence[Slot]) -> list[Outcome]:
        """One forward for some of `slots`."""
        if not slots:
            return []
        rows = min(self.limit.rows, self.memory.rows() or self.limit.rows)
        turn, self._credits = take_turn(slots, self._credits)
        chosen = fill(turn, rows, self.memory.native_area)
        self._step += 1
        for slot in chosen:
            slot.last_step = slot.owner.last_step = self._step
        return together_or_alone(chosen, self._forward, self.memory)

    def _forward(self, chosen: Sequence[Slot]) -> list[Outcome]:
        calls = calls_of(chosen)
        merged = merge(calls)
        begin = time.perf_counter()
        output = self.run(merged)
        if merged.predicts:
            self.limit.learn(time.perf_counter() - begin, merged.area / self.memory.native_area)
            self.activity.unet_forwards += 1
            self.activity.unet_rows += merged.rows
            self.activity.steps += len(chosen)
            self.activity.merged_forwards += len({id(slot.owner) for slot in chosen}) > 1
        return list(zip(chosen, split(output, calls), strict=True))
