"""Whose calls go into the next forward, or into the VAE's next call. Pure functions: no device, no clock."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.engine.pipeline_job import PipelineJob
from handlers.engine.upscale_job import UpscaleJob
from handlers.forward.calls import DecodeCall, DenoiserCall, UpscaleCall
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
    def waits_for_denoiser(self) -> bool:
        return isinstance(self.job.call, DenoiserCall)

    @property
    def waits_for_decoder(self) -> bool:
        return isinstance(self.job.call, (DecodeCall, UpscaleCall))


Credits = Mapping[CallSignature, float]  # latent pixels
Outcome = tuple[Slot, Any]  # a slot with its output, or with the exception that its call raised


def calls_of(slots: Sequence[Slot]) -> list[DenoiserCall | DecodeCall | UpscaleCall]:
    """The calls that the jobs of `slots`, all of them paused, wait for."""
    return [slot.job.call for slot in slots if slot.job.call is not None]


def schedule(slots: Sequence[Slot], max_rows: int, native_area: int) -> list[Slot]:
    """The slots of the next call: round-robin over requests, then over a request's own jobs.

    The request that has waited longest goes first. Every other slot whose call has the same signature joins, as long
    as there is room. `max_rows` counts rows of `native_area` latent pixels: larger images fill it sooner. One call
    always fits.
    """
    return fill(next(iter(_by_signature(slots).values()), []), max_rows, native_area)


def take_turn(slots: Sequence[Slot], credits: Credits) -> tuple[list[Slot], Credits]:
    """The slots with the signature whose turn it is, as `schedule` sorts them, and everyone's credit afterwards.

    Deficit round robin (Shreedhar and Varghese, 1995): in each round, every signature gets the latent pixels of the
    smallest call as credit, and the one whose turn it is pays for a call of its own. So small images have several steps
    for one of a large image. Calls that share a forward pay once, so images of one size get equal turns.
    """
    waiting = _by_signature(slots)
    if len(waiting) <= 1:
        return next(iter(waiting.values()), []), {}
    prices = {signature: max(call.area for call in calls_of(own)) for signature, own in waiting.items()}
    least = min(prices.values())
    rounds = {own: max(0, math.ceil((price - credits.get(own, 0)) / least)) for own, price in prices.items()}
    chosen = min(waiting, key=lambda own: rounds[own])  # of equals, the one that has waited longest
    left = {own: credits.get(own, 0) + rounds[chosen] * least for own in waiting}
    return waiting[chosen], left | {chosen: left[chosen] - prices[chosen]}


def _by_signature(slots: Sequence[Slot]) -> dict[CallSignature, list[Slot]]:
    """Those whose calls can run as one, together; the slot that has waited longest is the very first."""
    alike: dict[CallSignature, list[Slot]] = {}
    for slot in sorted(slots, key=lambda slot: (slot.owner.last_step, slot.last_step)):
        assert slot.job.call is not None
        alike.setdefault(CallSignature.of(slot.job.call), []).append(slot)
    if len(alike) > 1 and logger.isEnabledFor(logging.DEBUG):
        first, *others = alike
        for other in others:
            logger.debug("Two calls do not merge: %s", "; ".join(first.differences(other)))
    return alike


def fill(slots: Sequence[Slot], max_rows: int, native_area: int) -> list[Slot]:
    """The first of `slots`, all with one signature, that fit into a call."""
    chosen: list[Slot] = []
    area = 0
    for slot in slots:
        call = slot.job.call
        assert call is not None
        if chosen and area + call.area > max_rows * native_area:
            break
        chosen.append(slot)
        area += call.area
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
