import base64
import contextlib
import struct

import numpy as np
import pytest
from PIL import Image

from handlers.errors import InvalidRequest, TooLarge
from handlers.imaging.documents import read_document
from handlers.imaging.files import FORMATS, decode_base64, open_image
from tests.support.samples import b64, bomb, file_bytes, sample_image

PNG = file_bytes(sample_image())
TEXT = base64.b64encode(PNG)


def read(data: bytes) -> Image.Image:
    return read_document(open_image(data, "init_image", 4096), "init_image")[0].image


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
    assert decode_base64(sloppy, "init_image") == PNG


def test_the_sample_needs_every_repair() -> None:
    assert b"+" in TEXT and b"/" in TEXT


@pytest.mark.parametrize("text", [b"", b"data:image/png;base64", b"not base64!", b"aGk=aGk=", b"a", "größe".encode()])
def test_what_is_not_base64_is_named(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="init_image"):
        decode_base64(text, "init_image")


@pytest.mark.parametrize("format", FORMATS)
def test_formats_of_the_contract_open(format: str) -> None:
    assert open_image(file_bytes(sample_image(), format), "init_image", 4096).image.size == (64, 64)


@pytest.mark.parametrize("format", ["PPM", "ICO"])
def test_other_formats_are_refused_before_decoding(format: str) -> None:
    with pytest.raises(InvalidRequest, match=r"init_image is .*: save it as PNG"):
        open_image(file_bytes(sample_image(), format), "init_image", 4096)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_short_is_refused(format: str) -> None:
    data = file_bytes(sample_image(), format)
    with pytest.raises(InvalidRequest, match="damaged or incomplete"):
        open_image(data[: len(data) // 2], "init_image", 4096)


def test_pixels_are_counted_from_the_header() -> None:
    with pytest.raises(TooLarge, match="64 x 65 pixels"):
        open_image(file_bytes(sample_image(64, 65)), "init_image", 4096)
    with pytest.raises(TooLarge, match="pixels"):
        open_image(bomb(), "init_image", 4096)


def test_exif_rotation_is_applied() -> None:
    image = sample_image(40, 20)
    exif = image.getexif()
    exif[0x0112] = 6
    upright = open_image(file_bytes(image, exif=exif), "init_image", 4096).image
    assert upright.size == (20, 40)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize(
    "entries",
    [
        [(0x0112, 3, 1, b"\0\6\0\0"), (0x011A, 2, 3, b"72\0\0")],  # XResolution as a text
        [(0x0100, 11, 1, struct.pack(">f", 40)), (0x0112, 3, 1, b"\0\6\0\0")],  # ImageWidth as a float
    ],
)
def test_exif_with_odd_fields_still_says_which_side_is_up(entries: list[tuple[int, int, int, bytes]]) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries))
    exif += b"".join(struct.pack(">HHI", *head) + value for *head, value in entries) + bytes(4)
    assert open_image(file_bytes(sample_image(40, 20), "JPEG", exif=exif), "init_image", 4096).image.size == (20, 40)


def test_exif_that_is_none_turns_nothing() -> None:
    image = sample_image(40, 20)
    assert np.array_equal(open_image(file_bytes(image, exif=b"no EXIF at all"), "init_image", 4096).image, image)


def test_sixteen_bit_keeps_its_brightness() -> None:
    deep = Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))
    grey = np.asarray(read(file_bytes(deep)))[..., 0]
    assert grey[0, 0] == 0 and grey[63, 63] == 255 and abs(int(grey[32, 0]) - 128) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    assert read(file_bytes(sample_image().convert(mode), format)).mode == "RGB"


def test_b64_sample_is_what_a_client_sends() -> None:
    assert base64.b64decode(b64(sample_image())) == PNG


@pytest.mark.parametrize("format", FORMATS)
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
            read_document(open_image(bytes(damaged), "init_image", 1_000_000), "init_image")
