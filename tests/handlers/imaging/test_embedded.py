"""Masked photographs with the embedded model: what a small part of a large image comes to."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from handlers.stable_diffusion import CombinedHandler
from tests.support.cases import case, case_image
from tests.support.frontend import Context, Frontend
from tests.support.samples import b64, decode, sample_image


@pytest.fixture(scope="module")
def handler() -> CombinedHandler:
    handler = CombinedHandler()
    handler.initialize(Context(max_batch_rows=16))
    return handler


def masked(frontend: Frontend, count: int = 1, **fields: Any) -> list[np.ndarray]:
    sent = {"prompt": "a strawberry", "strength": 1, "num_inference_steps": 8, "seed": 5, "num_outputs": count,
            "init_image": b64(case("photo_3000x2000.jpg")), "mask_image": b64(case("mask_300px.png"))}  # fmt: skip
    name = frontend.send("masking", **sent | fields)
    frontend.run()
    return [decode(image) for image in frontend.result(name)["images"]]


def detail(image: np.ndarray) -> float:
    """The mean of what a slight blur takes away."""
    blurred = Image.fromarray(image.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    return float(np.abs(image - np.asarray(blurred)).mean())


def test_a_small_part_of_a_photo_is_as_sharp_as_the_model_can_draw_it(frontend: Frontend) -> None:
    photo, mask = np.asarray(case_image("photo_3000x2000.jpg")), np.asarray(case_image("mask_300px.png"))
    first, second = masked(frontend, count=2)
    (reduced,) = masked(frontend, mask_padding=-1)
    for image in (first, second, reduced):
        assert np.array_equal(image[mask == 0], photo[mask == 0])
    inside = np.s_[1000:1300, 1350:1650]
    assert np.abs(first[inside] - second[inside]).mean() > 3
    assert detail(first[inside]) > 2 * detail(reduced[inside])


def test_the_crops_of_an_image_share_their_forwards(frontend: Frontend) -> None:
    mask = Image.new("L", (1600, 1200))
    for corner in ((100, 100), (1400, 1000)):
        mask.paste(255, (*corner, corner[0] + 60, corner[1] + 60))
    before = frontend.handler.engine.batcher.activity.unet_forwards
    masked(frontend, init_image=b64(sample_image(1600, 1200)), mask_image=b64(mask))
    assert frontend.handler.engine.batcher.activity.unet_forwards - before < 2 * 8
