"""What a mask's file means, and what becomes of it on its way to the pipeline."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from handlers.errors import InvalidRequest
from handlers.imaging.masks import fit_mask, pipeline_mask, read_mask, refine
from tests.support.cases import case_image
from tests.support.samples import half_mask, sample_image

Colour = tuple[int, int, int]
LEFT, RIGHT = half_mask(), Image.eval(half_mask(), lambda value: 255 - value)


def read(image: Image.Image, mode: str = "auto") -> np.ndarray:
    return np.asarray(read_mask(image, mode, "mask_image")[0])


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def with_alpha(image: Image.Image | Colour, alpha: Image.Image) -> Image.Image:
    copy = Image.new("RGB", alpha.size, image) if isinstance(image, tuple) else image.copy()
    copy.putalpha(alpha)
    return copy


@pytest.mark.parametrize("colour", [(0, 0, 0), (12, 100, 3), sample_image()],
                         ids=["black", "green", "photo"])  # fmt: skip
def test_of_a_dark_or_many_coloured_image_the_holes_are_replaced(colour: Colour | Image.Image) -> None:
    assert same(read(with_alpha(colour, RIGHT)), LEFT)


@pytest.mark.parametrize("colour", [(255, 255, 255), (200, 200, 200), (255, 255, 0), (255, 0, 0), (0, 0, 255)])
def test_light_strokes_on_nothing_are_replaced(colour: Colour) -> None:
    assert same(read(with_alpha(colour, RIGHT)), RIGHT)
    soft = RIGHT.filter(ImageFilter.GaussianBlur(4))
    assert same(read(with_alpha(colour, soft)), soft)


def test_dark_strokes_are_warned_of() -> None:
    (warning,) = read_mask(with_alpha((0, 0, 0), RIGHT), "auto", "mask_image")[1]
    assert "mask_mode=alpha replaces the visible part" in warning
    for image, mode in (((255, 0, 0), "auto"), (sample_image(), "auto"), ((0, 0, 0), "transparent")):
        assert not read_mask(with_alpha(image, RIGHT), mode, "mask_image")[1]


def test_as_the_web_ui_reads_it_the_visible_part_of_a_mask_or_its_white_one_is_replaced() -> None:
    mode = "alpha_or_luminance"
    for colour in ((0, 0, 0), (255, 255, 255), sample_image()):
        assert same(read(with_alpha(colour, RIGHT), mode), RIGHT)
    for mask in (LEFT, LEFT.convert("RGB"), LEFT.convert("RGBA")):
        assert same(read(mask, mode), LEFT) and not read_mask(mask, mode, "mask_image")[1]


def test_faint_pixels_whose_colour_a_canvas_has_rounded_do_not_count() -> None:
    strokes = with_alpha((255, 255, 0), RIGHT)
    strokes.putpixel((0, 0), (255, 85, 170, 3))
    assert read(strokes)[0, 0] == 3 and same(read(strokes)[1:], np.asarray(RIGHT)[1:])


def test_a_black_and_white_mask_counts_by_its_colour_though_it_has_alpha() -> None:
    mask = half_mask().convert("RGBA")
    mask.putpixel((0, 0), (255, 255, 255, 0))
    mask.putpixel((1, 0), (255, 255, 255, 128))
    expected = np.asarray(LEFT).copy()
    expected[0, :2] = 0, 128
    assert same(read(mask), expected)


def test_an_opaque_mask_is_its_greyscale() -> None:
    assert same(read(half_mask().convert("RGBA")), LEFT)
    assert same(read(sample_image()), sample_image().convert("L"))


def test_an_empty_layer_selects_nothing() -> None:
    assert not read(Image.new("RGBA", (8, 8))).any()
    assert read(Image.new("RGBA", (8, 8)), "transparent").all()


def test_each_mode_means_one_thing() -> None:
    mask = with_alpha(sample_image(), RIGHT)
    assert same(read(mask, "alpha"), RIGHT) and same(read(mask, "transparent"), LEFT)
    assert same(read(mask, "luminance"), Image.composite(sample_image().convert("L"), Image.new("L", (64, 64)), RIGHT))
    opaque = sample_image()
    assert read(opaque, "alpha").all()


def test_the_white_of_a_mask_without_holes_is_replaced() -> None:
    mask, (warning,) = read_mask(half_mask(), "transparent", "mask_image")
    assert same(mask, LEFT) and "no transparent part, so its white part" in warning


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "CMYK", "I;16"])
def test_a_mask_may_have_any_mode(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(LEFT).astype(np.uint16) * 257)
    else:
        image = LEFT.convert("RGB").convert(mode) if mode in ("P", "CMYK") else LEFT.convert(mode)
    assert same(read(image), LEFT)


def test_white_strokes_of_an_editor() -> None:
    strokes = case_image("mask_white_on_transparent.png")
    assert same(read(strokes), strokes.getchannel("A"))


def test_a_mask_of_the_same_shape_is_scaled_smoothly() -> None:
    fitted = np.asarray(fit_mask(half_mask(32, 32), (64, 64), "mask_image"))
    assert fitted.shape == (64, 64) and len(set(fitted[0])) > 2 and (np.diff(fitted[0].astype(int)) <= 0).all()
    assert fit_mask(LEFT, (64, 64), "mask_image") is LEFT


@pytest.mark.parametrize("mask", [(512, 341), (512, 342), (1000, 665), (3000, 2001)])
def test_two_pixels_of_rounding_are_the_same_shape(mask: tuple[int, int]) -> None:
    assert fit_mask(Image.new("L", mask), (3000, 2000), "mask_image").size == (3000, 2000)


@pytest.mark.parametrize("mask", [(2000, 3000), (512, 512), (512, 346), (1000, 663), (3000, 2003)])
def test_a_mask_of_another_shape_is_refused(mask: tuple[int, int]) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"mask_image has {mask[0]} x {mask[1]} pixels and init_image, upright, 3"
    ):
        fit_mask(Image.new("L", mask), (3000, 2000), "mask_image")


def test_a_mask_grows_by_pixels() -> None:
    mask = Image.new("L", (40, 30))
    mask.paste(200, (10, 10, 12, 13))
    grown = refine(mask, 5, 0)
    assert grown.getbbox() == (5, 5, 17, 18) and grown.getextrema() == (0, 200)
    assert refine(mask, 30, 0).getextrema() == (200, 200)
    assert refine(mask, 0, 0) is mask


def test_a_blurred_mask_is_as_if_the_whole_were_blurred() -> None:
    mask = Image.new("L", (400, 300))
    mask.paste(255, (150, 120, 220, 200))
    blurred = np.asarray(refine(mask, 0, 10)).astype(int)
    assert np.abs(blurred - np.asarray(mask.filter(ImageFilter.GaussianBlur(10)))).max() <= 1
    assert blurred[160, 150] in range(110, 146) and blurred[160, 185] == 255 and blurred[0].max() == 0


def test_a_hard_mask_of_the_generated_size_stays_as_it_is() -> None:
    odd = Image.new("L", (64, 64))
    odd.paste(255, (3, 5, 20, 31))
    assert same(pipeline_mask(odd, (64, 64)), odd)


def test_whatever_is_above_black_is_generated_in_whole_blocks() -> None:
    soft = Image.new("L", (64, 64))
    soft.putpixel((9, 17), 1)
    assert pipeline_mask(soft, (64, 64)).getbbox() == (8, 16, 16, 24)
    speck = Image.new("L", (1600, 1200))
    speck.putpixel((805, 600), 255)
    mask = pipeline_mask(speck, (512, 384))
    assert mask.getbbox() == (256, 192, 264, 200) and mask.getextrema() == (0, 255)
    enlarged = Image.new("L", (10, 10))
    enlarged.putpixel((5, 5), 255)
    assert pipeline_mask(enlarged, (80, 80)).getbbox() == (40, 40, 48, 48)


def test_a_gradient_is_generated_wherever_it_is_above_black() -> None:
    gradient = case_image("mask_gradient.png")
    mask = np.asarray(pipeline_mask(gradient, (256, 256)).resize((512, 512), Image.Resampling.NEAREST))
    assert (mask[np.asarray(gradient) > 0] == 255).all() and (mask == 0).any()
