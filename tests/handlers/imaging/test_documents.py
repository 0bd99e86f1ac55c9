"""Transparency, and what the model sees of a document."""

import numpy as np
import pytest
from PIL import Image

from handlers.imaging.documents import Document, fill_from_around, fill_masked, model_image, read_document
from handlers.imaging.files import open_image
from tests.support.cases import case
from tests.support.samples import file_bytes, half_mask, sample_image

BOX = (0, 0, 64, 64)


def read(data: bytes) -> Document:
    return read_document(open_image(data, "init_image", 10**6), "init_image")[0]


def cut_out(hidden: tuple[int, int, int]) -> Image.Image:
    """The sample, transparent on its left half, where it has the colour `hidden`; half transparent in one column."""
    image = sample_image()
    image.paste(hidden, (0, 0, 32, 64))
    image.putalpha(Image.eval(half_mask(), lambda value: 255 - value))
    for y in range(64):
        image.putpixel((32, y), (*image.getpixel((32, y))[:3], 100))
    return image


def test_the_colour_under_alpha_0_stays_and_the_model_does_not_see_it() -> None:
    images = cut_out((0, 0, 0)), cut_out((250, 3, 90))
    one, other = (read(file_bytes(image)) for image in images)
    assert np.array_equal(one.image, images[0]) and np.array_equal(other.image, images[1])
    for size in ((64, 64), (32, 40), (128, 128)):
        assert np.array_equal(model_image(one, BOX, size), model_image(other, BOX, size))


def test_an_opaque_alpha_channel_is_none() -> None:
    document = read(file_bytes(sample_image().convert("RGBA")))
    assert document.image.mode == "RGB" and document.alpha is None


def test_holes_take_the_colours_around_them() -> None:
    image = Image.new("RGBA", (64, 64), (200, 40, 40, 255))
    image.paste((20, 60, 220, 255), (32, 0, 64, 64))
    image.paste((0, 255, 0, 0), (10, 20, 22, 40))
    filled = np.asarray(fill_from_around(image)).astype(int)
    assert filled.shape == (64, 64, 3)
    assert np.abs(filled[20:40, 10:16] - (200, 40, 40)).max() < 40
    outside = np.asarray(image)[..., 3] == 255
    assert np.array_equal(filled[outside], np.asarray(image)[outside][:, :3])


def test_nothing_visible_is_grey() -> None:
    seen = model_image(read(file_bytes(Image.new("RGBA", (64, 40), (9, 200, 3, 0)))), (0, 0, 64, 40), (64, 40))
    assert seen.mode == "RGB" and seen.getextrema() == ((128, 128),) * 3


def test_a_crop_is_resized_to_what_the_model_generates() -> None:
    document = Document(sample_image(200, 100))
    seen = model_image(document, (50, 20, 150, 70), (256, 128))
    assert np.array_equal(seen, document.image.crop((50, 20, 150, 70)).resize((256, 128), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_one_colour_may_stand_for_transparency(mode: str) -> None:
    image = Image.new(mode, (8, 8), 0)
    image.paste(255 if mode != "RGB" else (255, 255, 255), (0, 0, 4, 8))
    transparency = 255 if mode != "RGB" else (255, 255, 255)
    document = read(file_bytes(image, transparency=transparency))
    assert document.alpha is not None and document.alpha.getbbox() == (4, 0, 8, 8)


def test_a_palette_may_have_an_alpha_for_each_colour() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2, 3])
    document = read(file_bytes(image, transparency=bytes([0, 128, 255, 255])))
    assert np.asarray(document.image)[0].tolist() == [
        [0, 0, 0, 0],
        [10, 20, 30, 128],
        [40, 50, 60, 255],
        [70, 80, 90, 255],
    ]


def test_white_may_be_transparent() -> None:
    document = read(case("png_white_is_transparent.png"))
    assert document.alpha is not None and document.alpha.getextrema() == (0, 255)


def test_sixteen_bits_become_eight_and_do_not_clip() -> None:
    deep = Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))
    document = read(file_bytes(deep, transparency=0))
    assert np.asarray(document.image)[32, 0].tolist() == [128, 128, 128, 255]
    assert document.alpha is not None and np.argwhere(np.asarray(document.alpha) == 0).tolist() == [[0, 0]]
    assert read(case("ramp_16bit.png")).image.getextrema() == ((0, 15),) * 3  # the high byte of up to 4095


@pytest.mark.parametrize("fill", ["original", "blur", "noise", "neutral"])
def test_what_lies_under_the_mask_can_be_chosen(fill: str) -> None:
    image, mask = sample_image(), half_mask()
    filled = np.asarray(fill_masked(image, mask, fill)).astype(int)
    assert np.array_equal(filled[:, 32:], np.asarray(image)[:, 32:])
    inside = filled[:, :32]
    if fill == "original":
        assert np.array_equal(inside, np.asarray(image)[:, :32])
    elif fill == "neutral":
        assert (inside == 128).all()
    elif fill == "noise":
        assert inside.std() > 60 and np.array_equal(filled, np.asarray(fill_masked(image, mask, fill)))
    else:
        border = np.asarray(image)[:, 32:36].mean(axis=1)  # (rows, channels)
        assert np.abs(inside[:, -4:].mean(axis=1) - border).mean() < 30
        assert inside.std(axis=1).mean() < np.asarray(image)[:, :32].std(axis=1).mean()
