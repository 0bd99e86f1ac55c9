"""Whose calls go into the next forward, or into the VAE's next call. Pure functions: no device, no clock."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.engine.pipeline_job import PipelineJob
from handlers.engine.upscale_job import UpscaleJob
from handlers.forward.calls import DecodeCall, UNetCall, UpscaleCall
from handlers.forward.signature import CallSignature
from handlers.hardware.device import is_out_of_memory
from handlers.hardware.memory import Memory

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Slot:
    """A job's place in the batch, which another job may take over when it has ended.

    Attributes:
        owner: the request that the job belongs to, with a `last_step` of its own.
        last_step: the number of the last forward that served it.
        later_steps: about how many steps the jobs have that follow this one; 0 if none does.
        earlier_steps: of the jobs before this one.
    """

    job: PipelineJob | UpscaleJob
    owner: Any
    last_step: int = 0
    later_steps: int = 0
    earlier_steps: int = 0
    _expected_steps: int = 0  # of the job, until its pipeline tells them

    def follow(self, job: PipelineJob | UpscaleJob, steps: int) -> None:
        """Gives the place to a job that has about so many of the later steps, since the one before has ended."""
        self.earlier_steps += self.job.steps_done
        self._expected_steps, self.later_steps = steps, self.later_steps - steps
        self.job = job

    @property
    def ended(self) -> bool:
        """Whether the last job has ended."""
        return self.job.ended and not self.later_steps

    @property
    def progress(self) -> tuple[int, int]:
        """The steps that are done, and those in all; 0 in all before the first one."""
        own = self.job.total_steps or self._expected_steps
        return self.earlier_steps + self.job.steps_done, own and self.earlier_steps + own + self.later_steps

    @property
    def waits_for_unet(self) -> bool:
        return isinstance(self.job.call, UNetCall)

    @property
    def waits_for_decoder(self) -> bool:
        return isinstance(self.job.call, (DecodeCall, UpscaleCall))


Outcome = tuple[Slot, Any]  # a slot with its output, or with the exception that its call raised


def calls_of(slots: Sequence[Slot]) -> list[UNetCall | DecodeCall | UpscaleCall]:
    """The calls that the jobs of `slots`, all of them paused, wait for."""
    return [slot.job.call for slot in slots if slot.job.call is not None]


def schedule(slots: Sequence[Slot], max_rows: int, native_area: int) -> list[Slot]:
    """The slots of the next call: round-robin over requests, then over a request's own jobs.

    The request that has waited longest goes first. Every other slot whose call has the same signature joins, as long
    as there is room. `max_rows` counts rows of `native_area` latent pixels: larger images fill it sooner. One call
    always fits.
    """
    waiting = sorted(slots, key=lambda slot: (slot.owner.last_step, slot.last_step))
    if not waiting:
        return []
    first = waiting[0].job.call
    assert first is not None
    signature = CallSignature.of(first)
    room = max_rows * native_area / first.area
    chosen: list[Slot] = []
    rows = 0
    for slot in waiting:
        call = slot.job.call
        assert call is not None
        own = CallSignature.of(call)
        if own != signature:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug("Two calls do not merge: %s", "; ".join(signature.differences(own)))
            continue
        if chosen and rows + call.rows > room:
            break
        chosen.append(slot)
        rows += call.rows
    return chosen


def together_or_alone(
    slots: Sequence[Slot], run: Callable[[Sequence[Slot]], list[Outcome]], memory: Memory
) -> list[Outcome]:
    """The outcomes of `run` for all of `slots`. If it fails, each slot runs alone, so only the one at fault fails."""
    out_of_memory = False
    try:
        return run(slots)
    except Exception as error:
        if len(slots) == 1:
            return [(slots[0], error)]
        out_of_memory = is_out_of_memory(error)
    if out_of_memory:  # not before here: until now the error held the call's memory
        memory.release()
    return [outcome for slot in slots for outcome in together_or_alone([slot], run, memory)]
