"""The VAE's decoding: images of one size in one call, and on a GPU beside the steps of the others.

The tiles that an upscaler enlarges take their turns with them, one a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from handlers.engine.scheduling import Outcome, Slot, calls_of, schedule, together_or_alone
from handlers.errors import NotFinite
from handlers.forward.calls import DecodeCall, DenoiserCall, UpscaleCall
from handlers.forward.merging import forward, merge, split
from handlers.forward.side_stream import Event, NoSideStream, SideStream
from handlers.hardware.memory import Memory

# The bounds of one call, in latent pixels and in images: more at a time are no quicker, and the next step would wait
# for them, and for the safety checker, which looks at each by itself
AREA = 32 * 32
IMAGES = 4


@dataclass
class _Queued:
    """A call that was queued on the device. `calls` keeps its latents alive: another stream may still read them."""

    outcomes: list[Outcome]
    calls: list[DenoiserCall | DecodeCall | UpscaleCall]
    finite: list[torch.Tensor]  # () each
    event: Event


@dataclass
class Decoder:
    """Decodes for the jobs that wait for the VAE, in turns."""

    memory: Memory
    stream: NoSideStream | SideStream
    _queued: _Queued | None = None

    def decode_some(self, slots: Sequence[Slot], may_wait: bool) -> None:
        """One call for some of `slots` that wait for the VAE; a job whose image is decoded runs on to its end.

        Args:
            may_wait: whether there is nothing better to do than to wait for the device.
        """
        self._finish(may_wait)
        waiting = [slot for slot in slots if slot.waits_for_decoder]
        if waiting and self._queued is None:
            chosen = schedule(waiting, 1, AREA)[:IMAGES]
            if isinstance(chosen[0].job.call, UpscaleCall):  # one tile of many: the others are next
                chosen[0].owner.last_step = 1 + max(slot.owner.last_step for slot in waiting)
            self._queue(chosen)
            self._finish(may_wait)

    def _queue(self, slots: Sequence[Slot]) -> None:
        calls = calls_of(slots)
        self.stream.wait()
        with self.stream.active():
            outcomes = together_or_alone(slots, self._decode, self.memory)
            finite = [call.sample.isfinite().all() for call in calls]
            self._queued = _Queued(outcomes, calls, finite, self.stream.record())

    def _decode(self, slots: Sequence[Slot]) -> list[Outcome]:
        calls = calls_of(slots)
        return list(zip(slots, split(forward(merge(calls)), calls), strict=True))

    def _finish(self, may_wait: bool) -> None:
        queued = self._queued
        if queued is None or not (may_wait or queued.event.query()):
            return
        queued.event.synchronize()
        self._queued = None
        with self.stream.active():  # the safety checker and the way off the GPU wait for no step
            for (slot, outcome), finite in zip(queued.outcomes, queued.finite, strict=True):
                if isinstance(outcome, Exception):
                    slot.job.cancel(outcome)
                elif not finite:  # its image would be black, as if the safety checker had flagged it
                    slot.job.cancel(NotFinite())
                elif not slot.job.ended:
                    slot.job.advance(outcome)
