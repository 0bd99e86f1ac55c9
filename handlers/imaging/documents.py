"""An init image as its document has it, and as the model sees it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from handlers.imaging.colours import as_rgb, split, to_srgb
from handlers.imaging.files import ImageFile
from handlers.imaging.regions import Box


@dataclass(frozen=True)
class Document:
    """An init image.

    Attributes:
        image: RGB, or RGBA if some of it is transparent. What is wholly transparent has the colours of its file.
        profile: the RGB profile of its colours, None for sRGB.
        dpi: pixels per inch, across and down.
    """

    image: Image.Image
    profile: bytes | None = None
    dpi: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size

    @property
    def alpha(self) -> Image.Image | None:
        return self.image.getchannel("A") if self.image.mode == "RGBA" else None


def read_document(file: ImageFile, field: str) -> tuple[Document, list[str]]:
    """The document of a decoded file, and sentences about what could not be done.

    Raises InvalidRequest for colours that cannot be read.
    """
    colour, alpha = split(file.image, field)
    image, profile, warning = as_rgb(colour, file.profile, field)
    if alpha is not None:
        image.putalpha(alpha)
    return Document(image, profile, file.dpi), [*file.warnings, *([warning] if warning else [])]


def model_image(document: Document, box: Box, size: tuple[int, int]) -> Image.Image:
    """A part of the document as the model sees it: RGB in sRGB, resized to `size`, its transparent parts filled.

    The colours under alpha 0, which are whatever an editor left there, play no part.
    """
    image = document.image if box == (0, 0, *document.size) else document.image.crop(box)
    if image.mode == "RGBA":
        alpha = image.getchannel("A")
        colour = to_srgb(image.convert("RGB"), document.profile)
        colour.putalpha(alpha)
        colour.paste((0, 0, 0, 0), mask=alpha.point([255] + [0] * 255))
    else:
        colour = to_srgb(image, document.profile)
    resized = resize_to(colour, size)
    return fill_from_around(resized) if resized.mode == "RGBA" else resized


def resize_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size`; untouched if it has that size already."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def fill_from_around(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB, its transparent parts filled with the visible colours around them.

    Each half-size level lies over the next smaller one ("pull-push", Gortler et al., The Lumigraph, 1996). Pillow
    weights an RGBA image's colours with their alpha when it resizes, so hidden colours play no part.
    """
    levels = [image]
    while max(levels[-1].size) > 1:
        width, height = levels[-1].size
        levels.append(levels[-1].resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BOX))
    ground = levels[-1]
    if ground.getchannel("A").getextrema() == (0, 0):  # nothing is visible
        ground = Image.new("RGBA", ground.size, "grey")
    ground.putalpha(255)
    for level in reversed(levels):
        ground = Image.alpha_composite(ground.resize(level.size, Image.Resampling.BILINEAR), level)
    return ground.convert("RGB")


FILLS = ("original", "blur", "noise", "neutral")


def fill_masked(image: Image.Image, mask: Image.Image, fill: str) -> Image.Image:
    """The model's image with another content under its mask (255 or 0, of the same size), by one of FILLS.

    `blur` spreads the colours around the mask into it.
    """
    if fill == "original":
        return image
    if fill == "blur":
        around = image.copy()
        around.putalpha(mask.point([255] + [0] * 255))
        return fill_from_around(around)
    if fill == "noise":
        # always the same one: an image's seed alone must give it again
        noise = np.random.default_rng(0).integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
        return Image.composite(Image.fromarray(noise), image, mask)
    return Image.composite(Image.new("RGB", image.size, "grey"), image, mask)
