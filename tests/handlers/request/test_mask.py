"""A mask by itself."""

import numpy as np
import pytest
from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.request.mask import parse_mask
from tests.support.samples import file_bytes


def test_it_is_read_grown_and_blurred_as_masking_does() -> None:
    mask = Image.new("RGBA", (40, 30))
    mask.putpixel((20, 15), (0, 0, 0, 255))
    fields = {"mask_image": file_bytes(mask), "mask_mode": "alpha", "mask_grow": "2"}
    request = parse_mask(fields, HandlerConfig())
    assert request.init_image is not None and request.answer_size == (40, 30)
    grown = np.asarray(request.init_image.image)
    assert (grown[13:18, 18:23] == 255).all() and grown.sum() == 5 * 5 * 3 * 255
    blurred = parse_mask(fields | {"mask_blur": "3"}, HandlerConfig()).init_image
    assert blurred is not None and 0 < np.asarray(blurred.image).max() < 255


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "mask_image is missing"),
        ({"mask_image": "QUJD", "mask_grow": 300}, "mask_grow must be a whole number from 0 to 256"),
        ({"mask_image": "QUJD", "mask_mode": "x"}, "mask_mode must be one of"),
    ],
)
def test_what_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse_mask(fields, HandlerConfig())
