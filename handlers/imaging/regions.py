"""Which parts of a large image masking generates, and at which size: crop planning, without a pixel touched."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from PIL import Image

from handlers.imaging.sizes import ModelSizes

Box = tuple[int, int, int, int]  # left, top, right, bottom, as Pillow has them

MAX_CROPS = 4  # of an image: each one is generated
GAIN = 1.25  # a crop must be generated at a scale larger by this, since it shows the model less of the image
LEAST_PADDING = 32  # pixels
CELLS = 16  # across and down: parts of a mask that are nearer than such a cell are one region


@dataclass(frozen=True)
class Crop:
    """A part of an image that is generated.

    Attributes:
        box: what the model sees, in the image's pixels.
        size: width and height at which it generates it.
        region: the part of `box` that the mask may replace.
    """

    box: Box
    size: tuple[int, int]
    region: Box

    @classmethod
    def whole(cls, image: tuple[int, int], size: tuple[int, int]) -> "Crop":
        return cls((0, 0, *image), size, (0, 0, *image))

    @property
    def scale(self) -> float:
        """Generated pixels for one of the image's, along a side."""
        return math.sqrt(self.size[0] * self.size[1] / _area(self.box))


def plan(mask: Image.Image, padding: int | None, sizes: ModelSizes) -> tuple[Crop, ...]:
    """The crops that replace everything under `mask` (greyscale, above 0 = replace); none for a black mask.

    Args:
        padding: pixels of context around the mask; -1 for the whole image, None for what suits the mask.
    """
    box = mask.getbbox()
    if box is None:
        return ()
    whole = replace(Crop.whole(mask.size, sizes.of_image(*mask.size)), region=box)
    if padding == -1:
        return (whole,)

    def crop(region: Box) -> Crop:
        around = _crop_around(region, padding, mask.size, sizes)
        if padding is None and around.scale < GAIN * whole.scale:
            return replace(whole, region=region)
        return around

    return tuple(crop(region) for region in _joined(_regions(mask), crop))


def _crop_around(region: Box, padding: int | None, image: tuple[int, int], sizes: ModelSizes) -> Crop:
    left, top, right, bottom = region
    if padding is None:
        padding = max(LEAST_PADDING, max(right - left, bottom - top) // 4)
    # 1. the region and its context, at most twice as long as wide
    width, height = min(image[0], right - left + 2 * padding), min(image[1], bottom - top + 2 * padding)
    width, height = min(image[0], max(width, height // 2)), min(image[1], max(height, width // 2))
    # 2. the shape of the size that the model generates, which is rounded
    size = sizes.of_crop(width, height)
    shape = size[0] / size[1]
    width, height = min(image[0], max(width, round(height * shape))), min(image[1], max(height, round(width / shape)))
    # 3. around the region's middle, within the image
    x = max(0, min((left + right - width) // 2, image[0] - width))
    y = max(0, min((top + bottom - height) // 2, image[1] - height))
    return Crop((x, y, x + width, y + height), size, region)


def _regions(mask: Image.Image) -> list[Box]:
    """The boxes of the parts of a mask, found on a grid of CELLS x CELLS."""
    xs, ys = ([round(side * i / CELLS) for i in range(CELLS + 1)] for side in mask.size)
    found: dict[tuple[int, int], Box] = {}
    for i, j in ((i, j) for i in range(CELLS) for j in range(CELLS)):
        box = mask.crop((xs[i], ys[j], xs[i + 1], ys[j + 1])).getbbox()
        if box is not None:
            found[i, j] = (xs[i] + box[0], ys[j] + box[1], xs[i] + box[2], ys[j] + box[3])
    regions = []
    while found:
        cell, region = found.popitem()
        near = [cell]
        while near:
            i, j = near.pop()
            for other in [(i + x, j + y) for x in (-1, 0, 1) for y in (-1, 0, 1)]:
                if other in found:
                    region = _union(region, found.pop(other))
                    near.append(other)
        regions.append(region)
    return regions


def _joined(regions: Sequence[Box], crop: Callable[[Box], Crop]) -> list[Box]:
    """At most MAX_CROPS regions, none of which overlap, and each apart from another only if it is sharper for that."""
    boxes = list(regions)

    def must_join(pair: tuple[Box, Box]) -> bool:
        joint = crop(_union(*pair)).scale
        sharper = joint < 1 and max(crop(box).scale for box in pair) > GAIN * joint
        return not sharper or _overlap(*pair)

    while len(boxes) > 1:
        pairs = sorted(combinations(boxes, 2), key=lambda pair: _length(_union(*pair)) - max(map(_length, pair)))
        pair = pairs[0] if len(boxes) > MAX_CROPS else next(filter(must_join, pairs), None)
        if pair is None:
            break
        boxes = [box for box in boxes if box not in pair] + [_union(*pair)]
    return boxes


def _union(one: Box, other: Box) -> Box:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def _overlap(one: Box, other: Box) -> bool:
    return max(one[0], other[0]) < min(one[2], other[2]) and max(one[1], other[1]) < min(one[3], other[3])


def _length(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
