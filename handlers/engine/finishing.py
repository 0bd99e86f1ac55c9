"""From a pipeline's outputs to an image of the answer: put back into its document, encoded, and described."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from handlers.errors import TooLarge
from handlers.imaging.documents import resize_to
from handlers.imaging.output import COMPOSITE, ENHANCED, GENERATED, SideData, encode
from handlers.imaging.paste import paste, patch_of, regenerated
from handlers.imaging.regions import Box
from handlers.request.fields import GenerationRequest
from handlers.wire import UPSCALE, image_entry

HEADROOM = 65_536  # bytes of a reply that belong to its head and to other requests' lines


@dataclass(frozen=True)
class Provenance:
    """What an answer's file says about its origin: the parameters, and the mark of generated images."""

    parameters: bool = True
    mark: bool = True


@dataclass(frozen=True)
class FinishedImage:
    """An image of the answer, as JSON, and sentences for the answer's `warnings`."""

    entry: bytes
    warnings: Sequence[str]


def finish_image(
    request: GenerationRequest, index: int, outputs: Sequence[Any], parameters: str | None, marks: bool
) -> FinishedImage:
    """Image `index` of the answer.

    Args:
        outputs: the pipeline's, for each crop of the request.
        parameters: the text that the file carries, if any.
        marks: whether the file says that it was generated.
    """
    # pipelines without a checker of their own (SDXL) have no such attribute
    flagged = any((getattr(output, "nsfw_content_detected", None) or [False])[0] for output in outputs)
    image, box = _composed(request, [output.images[0] for output in outputs], flagged)
    document = request.init_image
    side = SideData(
        profile=document.profile if document else None,
        dpi=document.dpi if document else None,
        parameters=parameters if outputs else None,
        mark=_mark(request) if marks and outputs else None,
    )
    text, warnings = encode(image, request.output_format, request.output_quality, side, keep_alpha=request.patch)
    place = (box[0], box[1], box[2] - box[0], box[3] - box[1]) if box else None
    if flagged:
        warnings.append("The safety checker flagged an image, which is black for that reason (nsfw).")
    variation = request.variation_of(index)
    entry = image_entry(
        text, request.seed_of(index), flagged, image.size, f"image/{request.output_format}", place,
        variation.seed if variation else None,
    )  # fmt: skip
    return FinishedImage(entry, warnings)


def _mark(request: GenerationRequest) -> str:
    if request.task == UPSCALE:
        return ENHANCED
    return COMPOSITE if request.init_image else GENERATED


def _composed(
    request: GenerationRequest, images: Sequence[Image.Image], flagged: bool
) -> tuple[Image.Image, Box | None]:
    """The image as it is answered, and a patch's place."""
    document, mask = request.init_image, request.mask_image
    if document is None:
        return resize_to(images[0], request.answer_size), None
    if mask is None:  # without an image, the pixels were enlarged while the request was read
        return regenerated(document, images[0]) if images else document.image, None
    generated = zip(request.crops, images, strict=True)
    if request.patch:
        patch, box = patch_of(document, mask, generated, request.fills_holes)
        return (Image.new("RGBA", patch.size, "black") if flagged else patch), box
    if flagged:
        return Image.new("RGB", document.size), None
    return paste(document, mask, generated, request.fills_holes), None


def check_answer(images: Sequence[FinishedImage], max_response_bytes: int) -> None:
    """Raises TooLarge for an answer over TorchServe's limit, which would close the worker's channel."""
    if sum(len(image.entry) for image in images) > max_response_bytes - HEADROOM:
        raise TooLarge(
            f"The answer has more than {max_response_bytes} bytes: ask for output_format=jpeg, for fewer images at a "
            "time or, where there is a mask, for patch=true."
        )
