"""The second pass of a txt2img image: the first one's image, or its latents, are enlarged, and another job follows."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from handlers.engine.parsing import Parsed
from handlers.engine.scheduling import Slot
from handlers.imaging.upscaling import LATENTS, enlarge
from handlers.pipelines.latents import enlarge_latents


class SecondPasses:
    """Those of a request's images, in the engine's thread.

    Args:
        second: whose arguments have no image yet.
        upscaler: how the first pass's image is enlarged.
        pixels: along the side of a latent one.
        submit: has the pool do something, and wakes the engine at its end.
    """

    def __init__(self, second: Parsed, upscaler: str, pixels: int, submit: Callable[..., Future[Any]]) -> None:
        self._second = second
        self._upscaler = upscaler
        self._pixels = pixels
        self._submit = submit
        self._enlarging: dict[int, Future[Any]] = {}  # by the number of the image

    @property
    def guidance_scale(self) -> float:
        return self._second.request.guidance_scale

    def follow(self, index: int, slot: Slot) -> None:
        """Gives the slot of image `index` its second job, if the first one has ended and its image is enlarged."""
        if not slot.later_steps or not slot.job.ended or slot.job.error is not None:
            return
        images, size = slot.job.result.images, self._second.request.crops[0].size
        if self._upscaler in LATENTS:
            image = enlarge_latents(images, (size[0] // self._pixels, size[1] // self._pixels), self._upscaler)
        elif index not in self._enlarging:
            self._enlarging[index] = self._submit(enlarge, images[0], size, self._upscaler)
            return
        elif not self._enlarging[index].done():
            return
        else:
            image = self._enlarging.pop(index).result()
        slot.follow(self._second.job(index, {**self._second.crops[0], "image": image}))

    def cancel(self) -> None:
        for future in self._enlarging.values():
            future.cancel()
