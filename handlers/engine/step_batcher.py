"""One merged UNet forward a step for all running jobs.

`schedule` decides whose calls go into the next forward, or into the VAE's next call (handlers/decoder.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from handlers.engine.pipeline_job import DecodeCall, PipelineJob, UNetCall
from handlers.forward.merging import forward, merge, merge_key, split
from handlers.hardware.device import is_out_of_memory
from handlers.hardware.memory import Memory

TICK_SECONDS = 0.25  # how long one merged forward may take: what a new request waits at most for its first step
ROWS = (2, 32)  # a guided image's rows; and more rows than any device that was measured gains from


@dataclass(eq=False)
class Slot:
    """A job's place in the schedule.

    Attributes:
        owner: the request that the job belongs to, with a `last_step` of its own.
        last_step: the number of the last forward that served it.
    """

    job: PipelineJob
    owner: Any
    last_step: int = 0

    @property
    def waits_for_unet(self) -> bool:
        return isinstance(self.job.call, UNetCall)

    @property
    def waits_for_vae(self) -> bool:
        return isinstance(self.job.call, DecodeCall)


Outcome = tuple[Slot, Any]  # a slot with the output for it, or with the exception that its call raised


@dataclass
class Activity:
    """Counters since the start, for `GET /models`."""

    unet_forwards: int = 0
    merged_forwards: int = 0  # forwards that served more than one request
    unet_rows: int = 0
    steps: int = 0  # of all images
    started_requests: int = 0
    queue_seconds: float = 0.0  # that those waited for their first step


def calls_of(slots: Sequence[Slot]) -> list[UNetCall | DecodeCall]:
    """What the jobs of `slots`, all of them paused, wait for."""
    return [slot.job.call for slot in slots if slot.job.call is not None]


def schedule(slots: Sequence[Slot], max_rows: int, native_area: int) -> list[Slot]:
    """The slots of the next call: round-robin over requests, then over a request's own jobs.

    The request that has waited longest goes first, and every other one whose call merges with its call joins, as
    long as there is room. `max_rows` counts rows of `native_area` latent pixels: larger pictures fill it sooner. One
    call always fits.
    """
    waiting = sorted(slots, key=lambda slot: (slot.owner.last_step, slot.last_step))
    if not waiting:
        return []
    first = waiting[0].job.call
    assert first is not None
    key = merge_key(first)
    room = max_rows * native_area / first.area
    chosen: list[Slot] = []
    rows = 0
    for slot in waiting:
        call = slot.job.call
        assert call is not None
        if merge_key(call) != key:
            continue
        if chosen and rows + call.rows > room:
            break
        chosen.append(slot)
        rows += call.rows
    return chosen


def together_or_alone(
    slots: Sequence[Slot], run: Callable[[Sequence[Slot]], list[Outcome]], memory: Memory
) -> list[Outcome]:
    """What `run` gives for all of `slots`, and where it fails for each of them alone: only the one at fault fails."""
    out_of_memory = False
    try:
        return run(slots)
    except Exception as error:
        if len(slots) == 1:
            return [(slots[0], error)]
        out_of_memory = is_out_of_memory(error)
    if out_of_memory:  # not before here: until now the error holds what the call had
        memory.release()
    return [outcome for slot in slots for outcome in together_or_alone([slot], run, memory)]


@dataclass
class RowLimit:
    """How many rows one forward may have, counted at the native size, so that it takes about TICK_SECONDS.

    On a CPU it goes on learning from every forward: at the start the workers still fight over the cores. On an
    accelerator a forward's time cannot be seen without waiting for the device, so the first measurement stays.

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
        low, high = ROWS
        return self.fixed or max(low, min(high, int(TICK_SECONDS / self.seconds_per_row)))

    def learn(self, seconds: float, rows: float) -> None:
        """Takes in a forward of `rows` rows of native size."""
        if self.learns:
            self.seconds_per_row += 0.2 * (seconds / rows - self.seconds_per_row)


@dataclass
class StepBatcher:
    """Runs `schedule`'s choice, within what time and memory allow; `run` is a forward."""

    limit: RowLimit
    memory: Memory
    run: Callable[[UNetCall], Any] = forward
    activity: Activity = field(default_factory=Activity)
    _step: int = 0

    def step(self, slots: Sequence[Slot]) -> list[Outcome]:
        """One forward for some of `slots`."""
        if not slots:
            return []
        rows = min(self.limit.rows, self.memory.rows() or self.limit.rows)
        chosen = schedule(slots, rows, self.memory.native_area)
        self._step += 1
        for slot in chosen:
            slot.last_step = slot.owner.last_step = self._step
        return together_or_alone(chosen, self._forward, self.memory)

    def _forward(self, chosen: Sequence[Slot]) -> list[Outcome]:
        calls = calls_of(chosen)
        merged = merge(calls)
        begin = time.perf_counter()
        output = self.run(merged)
        self.limit.learn(time.perf_counter() - begin, merged.rows * merged.area / self.memory.native_area)
        self.activity.unet_forwards += 1
        self.activity.unet_rows += merged.rows
        self.activity.steps += len(chosen)
        self.activity.merged_forwards += len({id(slot.owner) for slot in chosen}) > 1
        return list(zip(chosen, split(output, calls), strict=True))
