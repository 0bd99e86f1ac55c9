"""The fields of a mask by itself, which is answered as `masking` would use it. Imports no torch."""

from handlers.config import HandlerConfig
from handlers.imaging import masks
from handlers.imaging.documents import Document
from handlers.request import forms
from handlers.request.fields import GenerationRequest, check_answer_size, of_image, read_output
from handlers.request.images import MAX_REACH
from handlers.request.reader import Reader
from handlers.wire import MASK


def parse_mask(fields: forms.Fields, config: HandlerConfig) -> GenerationRequest:
    """Checks the fields, decodes the mask, and grows and blurs it. Raises InvalidRequest or TooLarge."""
    read = Reader(fields)
    mode = read.choice("mask_mode", masks.MODES, "auto")
    grow, blur = (read.whole(name, 0, 0, MAX_REACH) for name in ("mask_grow", "mask_blur"))
    values, doubts = read_output(read)
    file = read.image("mask_image", config)
    check_answer_size(1, file.image.size, values["output_format"], config.max_response_bytes)
    mask, more = masks.read_mask(file.image, mode, "mask_image")
    document = Document(masks.refine(mask, grow, blur).convert("RGB"))
    return of_image(MASK, document, warnings=(*file.warnings, *doubts, *more), **values)
