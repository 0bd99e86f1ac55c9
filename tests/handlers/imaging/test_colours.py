"""Profiles of every kind of document. A colour may differ by the rounding of two conversions, JPEG's edges aside."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from handlers.errors import InvalidRequest
from handlers.imaging.colours import from_srgb
from handlers.imaging.documents import Document, model_image, read_document
from handlers.imaging.files import open_image
from handlers.imaging.paste import regenerated
from tests.support.cases import as_seen, case, case_image, profile_of
from tests.support.profiles import linear_grey, swapped_rgb
from tests.support.samples import file_bytes, sample_image

P3, CMYK = profile_of("icc_p3.jpg"), profile_of("icc_cmyk.jpg")
WHOLE = (0, 0, 320, 240)


def read(data: bytes) -> tuple[Document, list[str]]:
    return read_document(open_image(data, "init_image", 10**6), "init_image")


def difference(one: Any, other: Any) -> tuple[float, float]:
    """The largest but for one in a hundred, and the mean."""
    each = np.abs(np.asarray(one).astype(int) - np.asarray(other))
    return float(np.percentile(each, 99)), float(each.mean())


def test_a_document_in_display_p3_is_seen_in_srgb_and_comes_back_in_its_own() -> None:
    document, warnings = read(case("icc_p3.jpg"))
    assert document.profile == P3 and not warnings
    assert np.array_equal(document.image, case_image("icc_p3.jpg"))
    chart = as_seen(case_image("chart.png"))
    seen = model_image(document, WHOLE, (320, 240))
    assert difference(seen, chart)[1] < 1.5  # JPEG's
    assert difference(document.image, chart)[1] > 5  # what they would be without the profile
    back = regenerated(document, Image.fromarray(chart.astype(np.uint8)))
    back.info["icc_profile"] = document.profile
    assert difference(as_seen(back), chart) <= (2, 0.6)


def test_cmyk_is_converted_by_its_profile_and_comes_back_in_srgb() -> None:
    document, warnings = read(case("icc_cmyk.jpg"))
    assert document.profile is None and document.image.mode == "RGB" and not warnings
    assert difference(document.image, case_image("icc_cmyk_as_a_viewer_shows_it.png").convert("RGB")) <= (2, 0.5)


def test_grey_is_converted_by_its_profile() -> None:
    document, warnings = read(file_bytes(Image.new("L", (8, 8), 55), icc_profile=linear_grey()))
    assert document.profile is None and not warnings
    assert np.abs(np.asarray(document.image).astype(int) - 128).max() <= 3  # 55 / 255 of the light


def test_a_profile_of_look_up_tables_works_in_both_directions() -> None:
    document, warnings = read(file_bytes(sample_image(), icc_profile=swapped_rgb()))
    assert document.profile == swapped_rgb() and not warnings
    seen = model_image(document, (0, 0, 64, 64), (64, 64))
    assert difference(seen, np.asarray(sample_image())[..., ::-1])[1] < 3  # a table of 17 points
    assert difference(regenerated(document, seen), sample_image())[1] < 6


def test_a_profile_of_one_direction_gives_srgb_and_a_warning() -> None:
    document, warnings = read(file_bytes(sample_image(), icc_profile=swapped_rgb(both_ways=False)))
    assert document.profile is None
    assert warnings == ["The colour profile of init_image works in one direction only: the answer is in sRGB."]
    assert difference(document.image, np.asarray(sample_image())[..., ::-1])[1] < 3


@pytest.mark.parametrize(
    ("profile", "warning"),
    [
        (b"not a profile", "The colour profile of init_image cannot be read: its colours are taken as sRGB."),
        (P3[:200], "The colour profile of init_image cannot be read"),
        (CMYK, "init_image has a colour profile for CMYK, but its colours are RGB: the profile is ignored."),
        (linear_grey(), "init_image has a colour profile for GRAY, but its colours are RGB"),
    ],
)
def test_a_broken_or_foreign_profile_is_ignored_with_a_warning(profile: bytes, warning: str) -> None:
    document, warnings = read(file_bytes(sample_image(), icc_profile=profile))
    assert document.profile is None and len(warnings) == 1 and warnings[0].startswith(warning)
    assert np.array_equal(document.image, sample_image())


def test_grey_with_a_profile_for_rgb_is_grey() -> None:
    document, warnings = read(file_bytes(Image.new("L", (8, 8), 55), icc_profile=P3))
    assert document.profile is None and len(warnings) == 1
    assert document.image.getextrema() == ((55, 55),) * 3


def test_a_palette_has_the_profile_of_its_colours() -> None:
    palette = sample_image().quantize(16)
    document, _ = read(file_bytes(palette, icc_profile=P3))
    assert document.profile == P3 and np.array_equal(document.image, palette.convert("RGB"))


def test_lab_is_converted() -> None:
    lab = ImageCms.profileToProfile(
        sample_image(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    document, _ = read(file_bytes(lab, "TIFF"))
    assert difference(document.image, sample_image())[1] < 2


def test_floating_point_colours_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="init_image has floating-point colours: save it with 8 bits a channel"):
        read(file_bytes(Image.new("F", (8, 8)), "TIFF"))


def test_without_a_profile_nothing_is_converted() -> None:
    assert from_srgb(sample_image(), None) is not None and read(file_bytes(sample_image()))[0].profile is None
    document = read(file_bytes(sample_image()))[0]
    assert model_image(document, (0, 0, 64, 64), (64, 64)) is document.image
