"""The fields of `/upscale`."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, TooLarge
from handlers.imaging.upscaling import UPSCALERS
from handlers.request.upscale import UpscaleRequest, parse_upscale
from tests.support.samples import file_bytes, sample_image

IMAGE = sample_image(60, 40)


def parse(**fields: Any) -> UpscaleRequest:
    fields = {"init_image": file_bytes(IMAGE)} | fields
    return parse_upscale(fields, HandlerConfig(max_image_pixels=1_000_000), (*UPSCALERS, "4x_Mine"))


def test_a_scale_or_a_size() -> None:
    scaled = parse(scale="2.5").answer
    assert scaled.answer_size == (150, 100) and scaled.init_image is not None and scaled.init_image.size == (150, 100)
    assert np.array_equal(scaled.init_image.image, IMAGE.resize((150, 100), Image.Resampling.LANCZOS))
    sized = parse(width=90, height=60, upscaler="nearest")
    assert sized.upscaler == "Nearest" and sized.document.size == (60, 40)
    assert sized.answer.init_image is not None
    assert np.array_equal(sized.answer.init_image.image, IMAGE.resize((90, 60), Image.Resampling.NEAREST))


def test_of_another_shape_the_middle_is_kept() -> None:
    asked = parse(width=100, height=100)
    assert np.array_equal(asked.document.image, IMAGE.crop((10, 0, 50, 40)))
    assert asked.answer.answer_size == (100, 100)


def test_an_upscaler_from_a_file_sees_the_image_as_it_is() -> None:
    asked = parse(scale=2, upscaler="4X_mine")
    assert asked.upscaler == "4x_Mine" and np.array_equal(asked.document.image, IMAGE)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "Send either scale, or both width and height"),
        ({"width": 90}, "Send either scale, or both width and height"),
        ({"scale": 2, "height": 90}, "Send either scale, or both width and height"),
        ({"scale": 9}, "scale must be a number above 0 and at most 8"),
        ({"width": 0, "height": 5}, "width must be a whole number from 1 to 65500"),
        ({"scale": 2, "upscaler": "Latent"}, "upscaler must be one of None, Lanczos, Nearest, 4x_Mine, not 'Latent'"),
        ({"scale": 2, "init_image": "aGVsbG8="}, "init_image is not an image file"),
        ({"scale": 2, "output_format": "gif"}, "output_format must be"),
    ],
)
def test_each_wrong_field_has_its_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse(**fields)


def test_the_enlarged_image_has_a_bound() -> None:
    with pytest.raises(TooLarge, match="1001 x 1000 pixels is more than this server makes, 1000000 pixels"):
        parse(width=1001, height=1000)
