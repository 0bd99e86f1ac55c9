"""Upscalers from files, ESRGAN and what else the library spandrel reads. They enlarge an image tile by tile."""

import logging
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from handlers.errors import InvalidRequest
from handlers.forward.calls import UpscaleCall
from handlers.imaging.regions import Box
from handlers.imaging.upscaling import UPSCALERS
from handlers.pipelines.named_files import NamedFile, NamedFiles

logger = logging.getLogger(__name__)

LIBRARIES = ("spandrel", "torchvision")  # the second one is imported by the first
# pixels a side; with its margins, ESRGAN computes about as much for it as the UNet of Stable Diffusion 1.5 for a row
TILE = 96
MARGIN = 16  # pixels around a tile that the model sees too, so that no seam shows


def has_libraries() -> bool:
    return all(map(find_spec, LIBRARIES))


def suffixes(allow_pickle: bool) -> tuple[str, ...]:
    return (".safetensors", ".pth", ".pt", ".ckpt") if allow_pickle else (".safetensors",)


class Upscalers:
    """Those that are built in, and those of a folder. `names` and `file` are for any thread, `load` for the engine's.

    Args:
        max_pixels: of an image that has been enlarged.
    """

    def __init__(self, files: NamedFiles, device: torch.device, max_pixels: int) -> None:
        self._files = files
        self._device = device
        self._max_pixels = max_pixels
        self._last: tuple[NamedFile, Any] | None = None  # the one that was loaded last, and its model

    def names(self) -> list[str]:
        """Of all of them, also where a library is missing."""
        return [*UPSCALERS, *self._files.all()]

    def usable(self) -> list[str]:
        """Their names, as far as this server can run them."""
        return self.names() if has_libraries() else [*UPSCALERS]

    def file(self, name: str) -> NamedFile | None:
        """Of one of `names`; None for one that is built in. Raises InvalidRequest where a library is missing."""
        if name in UPSCALERS:
            return None
        if not has_libraries():
            raise InvalidRequest(
                f"The upscaler {name} is a file, which needs a package that this server does not have: its operator "
                f"can install {' and '.join(LIBRARIES)}."
            )
        file = self._files.all().get(name)
        if file is None:
            raise InvalidRequest(f"The upscaler {name} has just been removed: choose another one.")
        return file

    def load(self, file: NamedFile) -> Any:
        """spandrel's descriptor of the model. Raises InvalidRequest for a file that is no upscaler."""
        if self._last is None or self._last[0] != file:
            self._last = None  # its memory goes first
            self._last = file, self._read(file)
        return self._last[1]

    def enlarge(self, file: NamedFile, image: Image.Image) -> Generator[UpscaleCall, Any, Any]:
        """The calls that enlarge an RGB image; each is sent its output. Returns the image as a pipeline does.

        Raises InvalidRequest for an image that would become too large.
        """
        model = self.load(file)
        width, height = image.width * model.scale, image.height * model.scale
        if width * height > self._max_pixels:
            raise InvalidRequest(
                f"The upscaler {file.name} enlarges {model.scale} times, to {width} x {height} pixels; at most "
                f"{self._max_pixels} pixels can be made: send a smaller image."
            )
        result = np.empty((height, width, 3), np.uint8)
        for seen, kept in tiles(*image.size):
            pixels = torch.from_numpy(np.array(image.crop(seen))).permute(2, 0, 1)[None]  # (1, 3, height, width)
            output = yield UpscaleCall(model, pixels.to(model.device, model.dtype) / 255)
            made = (output[0][0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            left, top, right, bottom = (side * model.scale for side in kept)
            x, y = seen[0] * model.scale, seen[1] * model.scale
            result[top:bottom, left:right] = made[top - y : bottom - y, left - x : right - x]
        return SimpleNamespace(images=[Image.fromarray(result)])

    def _read(self, file: NamedFile) -> Any:
        from spandrel import ImageModelDescriptor, ModelLoader

        try:
            model = ModelLoader(self._device).load_from_file(file.path)
        except Exception as error:  # a file of any kind may lie there
            logger.warning("The upscaler %s cannot be loaded: %s", file.path, error)
            model = None
        if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
            raise InvalidRequest(f"{file.name} is not an upscaler of coloured images, or it is damaged.")
        return model.half() if self._device.type == "cuda" and model.supports_half else model


def tiles(width: int, height: int) -> Iterator[tuple[Box, Box]]:
    """The tiles of an image: what the model sees of each one, and what is kept of it; the kept parts do not overlap."""
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            right, bottom = min(left + TILE, width), min(top + TILE, height)
            seen = (max(0, left - MARGIN), max(0, top - MARGIN),
                    min(width, right + MARGIN), min(height, bottom + MARGIN))  # fmt: skip
            yield seen, (left, top, right, bottom)


def count_tiles(size: tuple[int, int]) -> int:
    return -(-size[0] // TILE) * -(-size[1] // TILE)
