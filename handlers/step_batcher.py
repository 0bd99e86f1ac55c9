"""One merged UNet forward a step for all running jobs.

`schedule` decides whose calls go into the next forward, `merge` and `split` make one call of several and several
results of one. Calls merge only if every argument agrees in structure, shape and dtype; nothing is dropped.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from handlers.device import is_out_of_memory
from handlers.memory import Memory
from handlers.pipeline_job import PipelineJob, UNetCall

TICK_SECONDS = 0.25  # how long one merged forward may take: what a new request waits at most for its first step
ROWS = (2, 32)  # a guided image's rows; and more rows than any device that was measured gains from


@dataclass(eq=False)
class Slot:
    """A job's place in the schedule.

    Attributes:
        owner: the request that the job belongs to, with a `last_step` of its own.
        last_step: the number of the last forward that served it.
        held_output: what the job's last UNet call was answered with, until it may go on to decode its image.
    """

    job: PipelineJob
    owner: Any
    last_step: int = 0
    held_output: Any = None

    @property
    def waits_for_unet(self) -> bool:
        return self.job.call is not None and self.held_output is None


@dataclass
class Activity:
    """Counters since the start, for `GET /models`."""

    unet_forwards: int = 0
    merged_forwards: int = 0  # forwards that served more than one request
    unet_rows: int = 0
    steps: int = 0  # of all images
    started_requests: int = 0
    queue_seconds: float = 0.0  # that those waited for their first step


def _signature(value: Any) -> Hashable:
    """What two arguments must have in common to be merged."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.shape[1:], value.dtype)
    if isinstance(value, Mapping):
        return ("dict", tuple((name, _signature(item)) for name, item in sorted(value.items())))
    if value is None or isinstance(value, (bool, int, float, str)):
        return ("value", type(value), value)
    return ("opaque", id(value))


def merge_key(call: UNetCall) -> tuple[Any, ...]:
    """Calls with equal keys can run in one forward."""
    sample = call.sample
    mergeable = all(
        tensor.dim() > 0 and tensor.shape[0] == call.rows
        for value in call.kwargs.values()
        for tensor in (value.values() if isinstance(value, Mapping) else [value])
        if isinstance(tensor, torch.Tensor)
    )
    timestep = call.timestep
    return (
        id(call.unet),
        (tuple(sample.shape[1:]), sample.dtype),
        timestep.dtype if isinstance(timestep, torch.Tensor) else type(timestep),
        tuple((name, _signature(value)) for name, value in sorted(call.kwargs.items())),
        None if mergeable else id(call),
    )


def schedule(slots: Sequence[Slot], max_rows: int, native_area: int) -> list[Slot]:
    """The slots of the next forward: round-robin over requests, then over a request's own jobs.

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


def _concatenate(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {name: _concatenate([value[name] for value in values]) for name in first}
    return first


def merge(calls: Sequence[UNetCall]) -> UNetCall:
    """One call for all of `calls`, which have equal merge keys. A single call stays exactly as it is."""
    if len(calls) == 1:
        return calls[0]
    sample = torch.cat([call.sample for call in calls])
    # each row gets its own job's timestep: (rows,)
    timestep = torch.cat([call.with_timesteps().timestep for call in calls])
    kwargs = {name: _concatenate([call.kwargs[name] for call in calls]) for name in calls[0].kwargs}
    return UNetCall(calls[0].unet, sample, timestep, kwargs)


def split(output: Any, calls: Sequence[UNetCall]) -> list[Any]:
    """The merged forward's output, (rows, channels, height, width) in a tuple or a model output, for each call."""
    if len(calls) == 1:
        return [output]
    rows = [call.rows for call in calls]
    if isinstance(output, tuple):
        return list(zip(*(part.split(rows) for part in output), strict=True))
    return [type(output)(sample=part) for part in output.sample.split(rows)]


def forward(call: UNetCall) -> Any:
    """Runs one call on its UNet."""
    with torch.no_grad():
        return call.unet(call.sample, call.timestep, **call.kwargs)


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

    def step(self, slots: Sequence[Slot]) -> list[tuple[Slot, Any]]:
        """One forward. Returns each served slot with its output, or with the exception that its call raised.

        A merged forward that fails is run again call by call, so that only the request at fault fails.
        """
        if not slots:
            return []
        rows = min(self.limit.rows, self.memory.rows() or self.limit.rows)
        chosen = schedule(slots, rows, self.memory.native_area)
        self._step += 1
        for slot in chosen:
            slot.last_step = slot.owner.last_step = self._step
        out_of_memory = False
        try:
            return self._forward(chosen)
        except Exception as error:
            if len(chosen) == 1:
                return [(chosen[0], error)]
            out_of_memory = is_out_of_memory(error)
        if out_of_memory:  # not before here: until now the error holds what the forward had
            self.memory.release()
        outcomes: list[tuple[Slot, Any]] = []
        for slot in chosen:
            try:
                outcomes += self._forward([slot])
            except Exception as error:
                outcomes.append((slot, error))
        return outcomes

    def _forward(self, chosen: Sequence[Slot]) -> list[tuple[Slot, Any]]:
        calls = [slot.job.call for slot in chosen if slot.job.call is not None]
        merged = merge(calls)
        begin = time.perf_counter()
        output = self.run(merged)
        self.limit.learn(time.perf_counter() - begin, merged.rows * merged.area / self.memory.native_area)
        self.activity.unet_forwards += 1
        self.activity.unet_rows += merged.rows
        self.activity.steps += len(chosen)
        self.activity.merged_forwards += len({id(slot.owner) for slot in chosen}) > 1
        return list(zip(chosen, split(output, calls), strict=True))
