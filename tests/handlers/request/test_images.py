import base64
import contextlib

import numpy as np
import pytest
from PIL import Image

from handlers.errors import InvalidRequest, TooLarge
from handlers.request import images
from tests.support.samples import b64, bomb, file_bytes, half_mask, sample_image

PNG = file_bytes(sample_image())
TEXT = base64.b64encode(PNG)


@pytest.mark.parametrize(
    "sloppy",
    [
        TEXT,
        b"data:image/png;base64," + TEXT,
        b"data:image/png;base64, " + TEXT + b"\n",
        TEXT.replace(b"+", b" "),
        TEXT.rstrip(b"="),
        base64.encodebytes(PNG),
        base64.encodebytes(PNG).replace(b"\n", b"\r\n"),
        base64.urlsafe_b64encode(PNG),
    ],
)
def test_base64_decodes_as_clients_really_send_it(sloppy: bytes) -> None:
    assert images.decode_base64(sloppy, "init_image") == PNG


def test_the_sample_needs_every_repair() -> None:
    assert b"+" in TEXT and b"/" in TEXT


@pytest.mark.parametrize("text", [b"", b"data:image/png;base64", b"not base64!", b"aGk=aGk=", b"a", "größe".encode()])
def test_what_is_not_base64_is_named(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="init_image"):
        images.decode_base64(text, "init_image")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_formats_of_the_contract_open(format: str) -> None:
    assert images.open_image(file_bytes(sample_image(), format), "init_image", 4096).size == (64, 64)


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_before_decoding(format: str) -> None:
    with pytest.raises(InvalidRequest, match=r"init_image is .*: save it as PNG, JPEG or WebP"):
        images.open_image(file_bytes(sample_image(), format), "init_image", 4096)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_short_is_refused(format: str) -> None:
    data = file_bytes(sample_image(), format)
    with pytest.raises(InvalidRequest, match="damaged or incomplete"):
        images.open_image(data[: len(data) // 2], "init_image", 4096)


def test_pixels_are_counted_from_the_header() -> None:
    with pytest.raises(TooLarge, match="64 x 65 pixels"):
        images.open_image(file_bytes(sample_image(64, 65)), "init_image", 4096)
    with pytest.raises(TooLarge, match="pixels"):
        images.open_image(bomb(), "init_image", 4096)


def test_exif_rotation_is_applied() -> None:
    image = sample_image(40, 20)
    exif = image.getexif()
    exif[0x0112] = 6
    upright = images.open_image(file_bytes(image, exif=exif), "init_image", 4096)
    assert upright.size == (20, 40)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_sixteen_bit_keeps_its_brightness() -> None:
    deep = Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))
    grey = np.asarray(images.to_rgb(images.open_image(file_bytes(deep), "init_image", 4096)))[..., 0]
    assert grey[0, 0] == 0 and grey[63, 63] == 255 and abs(int(grey[32, 0]) - 128) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    image = images.open_image(file_bytes(sample_image().convert(mode), format), "init_image", 4096)
    assert images.to_rgb(image).mode == "RGB"


def test_alpha_leaves_the_colours_as_they_are() -> None:
    image = sample_image()
    with_alpha = image.copy()
    with_alpha.putalpha(half_mask())
    assert np.array_equal(np.asarray(images.to_rgb(with_alpha)), np.asarray(image))


def _rgba(colour: tuple[int, int, int] | Image.Image) -> Image.Image:
    """An image that is transparent on its left half."""
    image = Image.new("RGB", (64, 64), colour) if isinstance(colour, tuple) else colour.copy()
    image.putalpha(Image.eval(half_mask(), lambda value: 255 - value))
    return image


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (12, 200, 3), sample_image()], ids=["black", "white", "one colour", "photo"]
)
def test_an_alpha_only_mask_replaces_where_it_is_transparent(colour: tuple[int, int, int] | Image.Image) -> None:
    assert np.array_equal(np.asarray(images.to_mask(_rgba(colour))), np.asarray(half_mask()))


def test_a_black_and_white_mask_counts_by_its_colour_though_it_has_alpha() -> None:
    mask = half_mask().convert("RGBA")
    mask.putpixel((0, 0), (0, 0, 0, 0))
    read = np.asarray(images.to_mask(mask))
    assert read[0, 0] == 0 and read[1, 1] == 255 and read[1, 63] == 0


def test_an_opaque_mask_is_its_greyscale() -> None:
    assert np.array_equal(np.asarray(images.to_mask(half_mask().convert("RGBA"))), np.asarray(half_mask()))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (128, 128)),
        ((512, 512), (128, 128)),
        ((64, 64), (128, 128)),
        ((768, 512), (128, 88)),
        ((300, 600), (64, 128)),
        ((1024, 64), (128, 64)),
    ],
)
def test_a_model_of_one_size_generates_the_shape_that_is_asked_for(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert images.fixed_model_size(*size, 128) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((500, 333), (504, 336)),
        ((64, 64), (64, 64)),
        ((10, 3000), (64, 1024)),
        ((2048, 1024), (1024, 512)),
        ((1, 1), (64, 64)),
    ],
)
def test_working_size_is_legal_and_near(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert images.working_size(*size, 64, 1024) == expected


def test_paste_back_keeps_every_pixel_under_black() -> None:
    init, result = sample_image(seed=1), sample_image(seed=2)
    pasted = np.asarray(images.paste_back(init, result, half_mask()))
    assert np.array_equal(pasted[:, 32:], np.asarray(init)[:, 32:])
    assert np.array_equal(pasted[:, :32], np.asarray(result)[:, :32])


def test_png_is_lossless_and_within_its_bound() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    text = images.encode_png(noise)
    back = images.open_image(base64.b64decode(text), "x", 60_000)
    assert np.array_equal(np.asarray(back), np.asarray(noise))
    assert len(text) <= images.max_png_base64_bytes(300, 200)


def test_b64_sample_is_what_a_client_sends() -> None:
    assert base64.b64decode(b64(sample_image())) == PNG


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_a_damaged_file_is_never_a_fault_of_ours(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = file_bytes(sample_image(), format, exif=exif)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(12, len(whole), 4):
            damaged[place] = rng.integers(256)
        with contextlib.suppress(InvalidRequest, TooLarge):
            images.open_image(bytes(damaged), "init_image", 1_000_000)
