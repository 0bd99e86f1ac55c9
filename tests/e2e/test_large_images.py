"""Photographs of a camera's size through the real server: bodies, crops and answers near their limits."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.support.running import Running
from tests.support.samples import b64

pytestmark = pytest.mark.e2e


def a_mask(width: int, height: int) -> str:
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 2, height // 2, width // 2 + 200, height // 2 + 150))
    return b64(mask)


def test_a_png_of_24_million_pixels_that_cannot_be_compressed_is_answered(combined: Running) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), dtype=np.uint8))
    init = b64(noise, "JPEG", quality=80)
    fields = {"init_image": init, "mask_image": a_mask(6000, 4000), "num_inference_steps": 2, "seed": 3}
    (image,) = combined.images("masking", **fields)
    answered = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["base64"]))))
    sent = np.asarray(Image.open(io.BytesIO(base64.b64decode(init))))
    assert answered.shape == (4000, 6000, 3) and np.array_equal(answered[:1900], sent[:1900])
    assert (answered[2010:2140, 3010:3190] != sent[2010:2140, 3010:3190]).any()


def test_a_photo_of_50_million_pixels_is_answered_as_a_patch_or_a_jpeg(combined: Running) -> None:
    tile = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
    photo = tile.resize((8000, 6250), Image.Resampling.BICUBIC)
    fields = {"init_image": b64(photo, "JPEG"), "mask_image": a_mask(8000, 6250), "num_inference_steps": 2}
    (patch,) = combined.images("masking", **fields, patch="true")
    assert patch["box"] == [4000, 3125, 200, 150]
    (image,) = combined.images("masking", **fields, output_format="jpeg")
    assert Image.open(io.BytesIO(base64.b64decode(image["base64"]))).size == (8000, 6250)
