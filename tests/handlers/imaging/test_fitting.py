"""Images at sizes of other shapes."""

import numpy as np
import pytest
from PIL import Image

from handlers.imaging.fitting import FITS, fitted
from tests.support.samples import half_mask, sample_image


@pytest.mark.parametrize("fit", FITS)
def test_every_mode_and_shape_gets_the_size(fit: str) -> None:
    for image in (sample_image(40, 30), sample_image(40, 30).convert("RGBA"), half_mask(40, 30)):
        for size in ((64, 64), (16, 128), (8, 8), (200, 80)):
            result = fitted(image, size, fit)
            assert (result.size, result.mode) == (size, image.mode)
        assert np.array_equal(fitted(image, image.size, fit), image)


@pytest.mark.parametrize("fit", FITS)
def test_a_line_can_be_fitted(fit: str) -> None:
    assert fitted(Image.new("RGB", (16_000, 1)), (64, 64), fit).size == (64, 64)


def test_stretched_cropped_and_padded() -> None:
    mask = half_mask(64, 32)  # its left half is white
    stretched, cropped, padded = (np.asarray(fitted(mask, (64, 64), fit)) for fit in FITS)
    assert (stretched[:, :30] == 255).all() and (stretched[:, 34:] == 0).all()
    assert (cropped[:, :28] == 255).all() and (cropped[:, 36:] == 0).all()
    assert np.array_equal(padded[16:48], np.asarray(mask))
    assert np.array_equal(padded[:16], np.repeat(padded[16:17], 16, axis=0))
    assert np.array_equal(padded[48:], np.repeat(padded[47:48], 16, axis=0))


def test_cropping_keeps_the_middle() -> None:
    stripes = Image.new("L", (90, 30))
    stripes.paste(255, (30, 0, 60, 30))
    assert (np.asarray(fitted(stripes, (30, 30), "crop")) == 255).all()
