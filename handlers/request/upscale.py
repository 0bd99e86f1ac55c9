"""The fields of `/upscale`, which enlarges an image without the model. Imports no torch."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.documents import Document, read_document
from handlers.imaging.files import TooManyPixels
from handlers.imaging.fitting import middle
from handlers.imaging.upscaling import LATENTS, enlarge
from handlers.request import forms
from handlers.request.fields import GenerationRequest, check_answer_size, of_image, read_output
from handlers.request.reader import Reader
from handlers.wire import UPSCALE

MAX_SCALE = 8.0
MAX_SIDE = 65_500


@dataclass(frozen=True)
class UpscaleRequest:
    """An image to enlarge.

    Attributes:
        upscaler: one that enlarges pixels, or the name of a file.
        document: the image, or the part of it that is enlarged.
        answer: what the answer is made of; its image is the enlarged one, in pixels.
    """

    upscaler: str
    document: Document
    answer: GenerationRequest


def parse_upscale(fields: forms.Fields, config: HandlerConfig, upscalers: Collection[str]) -> UpscaleRequest:
    """Checks the fields and decodes the image. Raises InvalidRequest or TooLarge.

    Args:
        upscalers: the names that there are.
    """
    read = Reader(fields)
    # 1. the fields
    upscaler = read.named("upscaler", [name for name in upscalers if name not in LATENTS]) or "Lanczos"
    scale = read.real("scale", 0.0, 0.0, MAX_SCALE, above=True)
    sides = [read.whole(side, None, 1, MAX_SIDE) for side in ("width", "height")]
    values, doubts = read_output(read)
    if bool(scale) == any(sides) or (any(sides) and not all(sides)):
        raise InvalidRequest("Send either scale, or both width and height: how large the image is to become.")
    # 2. the image
    document, warnings = read_document(read.image("init_image", config), "init_image")
    width, height = sides if all(sides) else [max(1, round(side * scale)) for side in document.size]
    if width * height > config.max_image_pixels:
        raise TooManyPixels(
            f"An image of {width} x {height} pixels is more than this server makes, {config.max_image_pixels} pixels: "
            "ask for a smaller one.",
            width * height,
        )
    check_answer_size(1, (width, height), values["output_format"], config.max_response_bytes)
    # 3. of another shape, its middle
    document = replace(document, image=document.image.crop(middle(document.size, (width, height))))
    enlarged = enlarge(document.image, (width, height), upscaler)
    answer = of_image(UPSCALE, replace(document, image=enlarged), warnings=(*warnings, *doubts), **values)
    return UpscaleRequest(upscaler, document, answer)
