"""Images enlarged for their second pass, in pixels."""

import numpy as np
from PIL import Image

from handlers.imaging.upscaling import PIXELS, enlarge
from tests.support.samples import sample_image


def test_an_image_gets_its_size_by_every_way() -> None:
    image = sample_image(64, 32)
    for upscaler in PIXELS:
        assert enlarge(image, (128, 64), upscaler).size == (128, 64)
    nearest = np.asarray(enlarge(image, (128, 64), "Nearest"))
    assert np.array_equal(nearest[::2, ::2], np.asarray(image)) and np.array_equal(nearest[1::2, 1::2], image)
    smooth = image.resize((128, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(enlarge(image, (128, 64), "Lanczos"), smooth)
    assert np.array_equal(enlarge(image, (128, 64), "None"), smooth)


def test_of_another_shape_the_middle_is_enlarged() -> None:
    image = Image.new("L", (64, 32))
    image.paste(255, (16, 0, 48, 32))
    assert np.array_equal(enlarge(image, (64, 64), "Nearest"), Image.new("L", (64, 64), 255))
