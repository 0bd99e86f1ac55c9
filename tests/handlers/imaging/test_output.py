"""The answer's file: its format, and what it says beside its pixels."""

import base64
import io
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import ExifTags, Image

from handlers.imaging.documents import read_document
from handlers.imaging.files import open_image
from handlers.imaging.output import COMPOSITE, FORMATS, GENERATED, SideData, encode, usual_base64_bytes
from tests.support.cases import profile_of
from tests.support.samples import file_bytes, half_mask, sample_image

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
P3 = profile_of("icc_p3.jpg")
TEXT = 'a cat, "größe" 猫\nNegative prompt: blurred\nSteps: 20, Sampler: Euler a, Seed: 7'


def written(image: Image.Image, format: str = "png", quality: int = 90, **side: Any) -> Image.Image:
    text, warnings = encode(image, format, quality, SideData(**side))
    assert not warnings
    back = Image.open(io.BytesIO(base64.b64decode(text)))
    back.load()
    return back


def cut_out() -> Image.Image:
    image = sample_image()
    image.putalpha(half_mask())
    return image


def test_png_is_lossless() -> None:
    for image in (sample_image(300, 200), cut_out()):
        assert np.array_equal(written(image), image) and written(image).mode == image.mode
    assert written(sample_image().convert("RGBA")).mode == "RGB"


def test_an_opaque_image_may_keep_its_alpha() -> None:
    for format, mode in (("png", "RGBA"), ("jpeg", "RGB")):
        text, warnings = encode(sample_image().convert("RGBA"), format, 90, SideData(), keep_alpha=True)
        assert Image.open(io.BytesIO(base64.b64decode(text))).mode == mode and not warnings


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_what_it_is_called(format: str) -> None:
    back = written(sample_image(), format)
    assert back.format == format.upper() and back.size == (64, 64)
    assert np.abs(np.asarray(back.convert("RGB")).astype(int) - np.asarray(sample_image())).mean() < 20


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_lower_quality_is_smaller(format: str) -> None:
    sizes = [len(encode(sample_image(256, 256), format, quality, SideData())[0]) for quality in (1, 50, 90, 100)]
    assert sizes == sorted(sizes) and sizes[0] * 3 < sizes[-1]


def test_webp_keeps_transparency_and_jpeg_lies_on_white() -> None:
    assert np.array_equal(written(cut_out(), "webp").getchannel("A"), half_mask())
    text, warnings = encode(cut_out(), "jpeg", 95, SideData())
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
    assert back[:, 48:].min() > 240
    assert warnings == ["JPEG has no transparency: the image lies on white. output_format=png keeps it."]


def text_of(image: Image.Image) -> str | None:
    """As AUTOMATIC1111's web UI and its kin read it."""
    if image.format == "PNG":
        text: str | None = image.info.get("parameters")
        return text
    comment = image.getexif().get_ifd(0x8769).get(0x9286)
    return None if comment is None else comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


@pytest.mark.parametrize("format", FORMATS)
def test_the_parameters_are_where_other_programs_look_for_them(format: str) -> None:
    assert text_of(written(sample_image(), format, parameters=TEXT)) == TEXT
    assert text_of(written(sample_image(), format)) is None


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mark", [GENERATED, COMPOSITE])
def test_the_mark_is_an_xmp_property(format: str, mark: str) -> None:
    image = written(sample_image(), format, mark=mark)
    (description,) = ElementTree.fromstring(image.info["xmp"].decode()).iter(f"{{{RDF}}}Description")
    kind = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert kind == f"http://cv.iptc.org/newscodes/digitalsourcetype/{mark}"
    assert "xmp" not in written(sample_image(), format).info


@pytest.mark.parametrize("format", FORMATS)
def test_the_profile_and_the_resolution_are_the_documents(format: str) -> None:
    image = written(sample_image(), format, profile=P3, dpi=(299.9994, 72.009), parameters=TEXT, mark=GENERATED)
    assert image.info["icc_profile"] == P3
    if format == "webp":
        exif = image.getexif()
        names = ExifTags.Base.XResolution, ExifTags.Base.YResolution, ExifTags.Base.ResolutionUnit
        assert [round(exif[name]) for name in names] == [300, 72, 2]
    else:
        assert [round(value) for value in image.info["dpi"]] == [300, 72]
    assert "icc_profile" not in written(sample_image(), format).info and "dpi" not in written(sample_image()).info


def test_a_resolution_comes_back_as_it_was() -> None:
    dpi = written(sample_image(), dpi=(2835 * 0.0254, 11811 * 0.0254)).info["dpi"]
    assert written(sample_image(), dpi=dpi).info["dpi"] == dpi


def test_parameters_that_a_jpeg_cannot_hold_are_left_out_with_a_warning() -> None:
    text, warnings = encode(sample_image(), "jpeg", 90, SideData(parameters="x" * 40_000))
    assert warnings == ["The parameters are too long for this format: the file is without them."]
    assert text_of(Image.open(io.BytesIO(base64.b64decode(text)))) is None
    for format in ("png", "webp"):
        assert text_of(written(sample_image(), format, parameters="x" * 40_000)) == "x" * 40_000


def test_side_data_of_the_init_image_does_not_go_into_the_answer() -> None:
    exif = Image.Exif()
    exif[0x010E] = "secret"
    init = file_bytes(sample_image(), "JPEG", comment=b"secret", exif=exif, xmp=b"secret")
    document = read_document(open_image(init, "init_image", 10**6), "init_image")[0]
    for format in FORMATS:
        assert b"secret" not in base64.b64decode(encode(document.image, format, 90, SideData())[0])


def test_a_photograph_is_about_as_large_as_estimated() -> None:
    rng = np.random.default_rng(0)
    smooth = np.asarray(sample_image(512, 512)).astype(int) // 2 + 60
    photo = Image.fromarray(np.clip(smooth + rng.normal(0, 3, smooth.shape), 0, 255).astype(np.uint8))
    for format in FORMATS:
        size = len(encode(photo, format, 90, SideData())[0])
        assert 0.2 < size / usual_base64_bytes(512, 512, format) < 2
