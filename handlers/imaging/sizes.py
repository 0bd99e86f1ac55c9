"""The sizes, in pixels, at which a model generates."""

import math
from dataclasses import dataclass

SIZE_MULTIPLE = 8  # a request's sizes are multiples of this, as every VAE and UNet of Stable Diffusion takes them


def nearest_size(value: int, low: int, high: int, multiple: int = SIZE_MULTIPLE) -> int:
    """The valid size (a multiple of `multiple` within low … high) nearest to `value`, in pixels."""
    legal_low, legal_high = -(-low // multiple) * multiple, high // multiple * multiple
    return max(legal_low, min(legal_high, (value + multiple // 2) // multiple * multiple))


@dataclass(frozen=True)
class ModelSizes:
    """What a model can generate.

    Attributes:
        native: width and height that it was trained at.
        low, high: the shortest and the longest side that the server generates.
        drawn: the longer side of everything that a fixed-size model generates; None for other models.
        multiple: of which all sides are.
    """

    native: tuple[int, int]
    low: int
    high: int
    drawn: int | None = None
    multiple: int = SIZE_MULTIPLE

    def of_image(self, width: int, height: int) -> tuple[int, int]:
        """The size at which a whole image of this size is generated: the nearest valid one."""
        if self.drawn is not None:
            return self._scaled(width, height, self.drawn / max(width, height), self.drawn // 2, self.drawn)
        return self._scaled(width, height, min(1.0, self.high / max(width, height)), self.low, self.high)

    def of_crop(self, width: int, height: int) -> tuple[int, int]:
        """The size at which a crop is generated: as `of_image`, but a small one is enlarged to the native area."""
        if self.drawn is not None:
            return self.of_image(width, height)
        enlarged = max(1.0, math.sqrt(self.native[0] * self.native[1] / (width * height)))
        return self._scaled(width, height, min(enlarged, self.high / max(width, height)), self.low, self.high)

    def _scaled(self, width: int, height: int, scale: float, low: int, high: int) -> tuple[int, int]:
        across, down = (nearest_size(round(side * scale), low, high, self.multiple) for side in (width, height))
        return across, down
