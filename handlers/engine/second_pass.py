"""The second pass of a txt2img image: the first one's image, or its latents, are enlarged, and another job follows."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from handlers.engine.parsing import Parsed
from handlers.engine.scheduling import Slot
from handlers.engine.upscale_job import UpscaleJob
from handlers.imaging.upscaling import LATENTS, enlarge
from handlers.pipelines.latents import enlarge_latents
from handlers.pipelines.upscalers import Upscalers, count_tiles


class SecondPasses:
    """Those of a request's images, in the engine's thread.

    Args:
        first: with the second pass in it, whose arguments have no image yet.
        upscalers: for one that is a file.
        pixels: along the side of a latent one.
        submit: has the pool do something, and wakes the engine at its end.
    """

    def __init__(
        self, first: Parsed, second: Parsed, upscalers: Upscalers, pixels: int, submit: Callable[..., Future[Any]]
    ) -> None:
        self._second = second
        self._upscaler = first.request.hires.upscaler if first.request.hires else ""
        self._file = first.upscaler
        self._upscalers = upscalers
        self._steps = int(second.request.num_inference_steps * second.request.strength)
        self._tiles = count_tiles(first.request.crops[0].size) if self._file else 0
        self._pixels = pixels
        self._submit = submit
        self._enlarging: dict[int, Future[Any]] = {}  # by the number of the image

    @property
    def later_steps(self) -> int:
        """About how many steps each image has after its first pass, a tile that is enlarged being one."""
        return self._tiles + self._steps

    @property
    def guidance_scale(self) -> float:
        return self._second.request.guidance_scale

    def follow(self, index: int, slot: Slot) -> None:
        """Gives the slot of image `index` its next job, if the one before has ended and the image is enlarged."""
        if not slot.later_steps or not slot.job.ended or slot.job.error is not None:
            return
        images, size = slot.job.result.images, self._second.request.crops[0].size
        if self._file and not slot.earlier_steps:
            slot.follow(UpscaleJob(self._upscalers.enlarge(self._file, images[0]), self._tiles), self._tiles)
            return
        if self._upscaler in LATENTS:
            image = enlarge_latents(images, (size[0] // self._pixels, size[1] // self._pixels), self._upscaler)
        elif index not in self._enlarging:
            self._enlarging[index] = self._submit(enlarge, images[0], size, self._upscaler)
            return
        elif not self._enlarging[index].done():
            return
        else:
            image = self._enlarging.pop(index).result()
        slot.owner.last_step = 0  # its tiles counted on beyond the forwards, and others would go first
        slot.follow(self._second.job(index, {**self._second.crops[0], "image": image}), self._steps)

    def cancel(self) -> None:
        for future in self._enlarging.values():
            future.cancel()
