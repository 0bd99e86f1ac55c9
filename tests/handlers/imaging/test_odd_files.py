"""Files that a decoder would read as another image than theirs: refused, or taken with a warning."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from handlers.errors import InvalidRequest
from handlers.imaging.documents import read_document
from handlers.imaging.files import open_image
from tests.support.samples import file_bytes, sample_image


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        read_document(open_image(data, "init_image", 10**6), "init_image")
    return str(refused.value)


def tiff(order: str, tags: dict[int, tuple[int, list[int]]], strips: list[bytes]) -> bytes:
    """An uncompressed TIFF of 16 x 16 pixels; `tags` are others than its size and its strips."""
    at = 8
    offsets = []
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    entries = tags | {
        256: (3, [16]), 257: (3, [16]), 259: (3, [1]), 278: (3, [16]),
        273: (4, offsets), 279: (4, [len(strip) for strip in strips]),
    }  # fmt: skip
    outside = at + 2 + 12 * len(entries) + 4
    table, extra = struct.pack(f"{order}H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{ {3: 'H', 4: 'I'}[kind] }", *values)
        if len(packed) > 4:
            extra, packed = extra + packed, struct.pack(f"{order}I", outside + len(extra))
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return start + struct.pack(f"{order}I", at) + b"".join(strips) + table + bytes(4) + extra


def values(order: str, kind: str, value: int) -> bytes:
    return np.full(256, value, f"{order}{kind}").tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_that_would_be_read_wrongly_are_refused(order: str) -> None:
    planes = [values(order, "u2", value) for value in (50_000, 55_000, 52_000)]
    planar = tiff(order, {258: (3, [16] * 3), 262: (3, [2]), 277: (3, [3]), 284: (3, [2])}, planes)
    negative = tiff(order, {258: (3, [16]), 262: (3, [0]), 277: (3, [1])}, [values(order, "u2", 20_000)])
    of_32_bits = tiff(order, {258: (3, [32]), 262: (3, [1]), 277: (3, [1])}, [values(order, "u4", 2**31)])
    five = tiff(order, {258: (3, [8] * 5), 262: (3, [5]), 277: (3, [5])}, [bytes(5 * 256)])
    for data in (planar, negative, of_32_bits, five):
        assert refusal(data) == (
            "init_image is a kind of TIFF that cannot be read here: save it as PNG, or as TIFF with 8 bits a channel."
        )


@pytest.mark.parametrize("order", ["<", ">"])
def test_those_that_are_read_rightly_are_taken(order: str) -> None:
    grey = tiff(order, {258: (3, [16]), 262: (3, [1]), 277: (3, [1])}, [values(order, "u2", 50_000)])
    negative = tiff(order, {258: (3, [8]), 262: (3, [0]), 277: (3, [1])}, [values(order, "u1", 60)])
    for data, expected in ((grey, 195), (negative, 195)):
        image = read_document(open_image(data, "init_image", 10**6), "init_image")[0].image
        assert image.getpixel((3, 3)) == (expected,) * 3


def test_a_png_without_its_palette_is_damaged() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 3, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64 * 65)) + chunk(b"IEND", b"")
    assert refusal(data) == "init_image is damaged or incomplete: it cannot be decoded."


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_half_a_jpeg_is_refused_in_every_mode(mode: str) -> None:
    data = file_bytes(sample_image(256, 256).convert(mode), "JPEG", quality=95)
    half = data[: len(data) // 2]
    assert refusal(half) == "init_image is damaged or incomplete: it cannot be decoded."
    # with an end it may be an image that ends in grey
    assert open_image(half + b"\xff\xd9", "init_image", 10**6).warnings == (
        "init_image ends in plain grey: a part of its file may be missing.",
    )
    assert not open_image(data, "init_image", 10**6).warnings


def test_a_grey_jpeg_is_whole() -> None:
    assert not open_image(file_bytes(Image.new("RGB", (64, 64), "grey"), "JPEG"), "init_image", 10**6).warnings


def test_a_resolution_that_the_file_does_not_have_is_not_made_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    options = {"TIFF": {}, "JPEG": {"exif": exif}}
    for format, more in options.items():
        assert open_image(file_bytes(sample_image(), format, **more), "init_image", 10**6).dpi is None
        data = io.BytesIO()
        sample_image().save(data, format, dpi=(300, 300), **more)
        assert open_image(data.getvalue(), "init_image", 10**6).dpi == (300, 300)


@pytest.mark.parametrize(("unit", "dpi"), [(None, (300, 150)), (2, (300, 150)), (3, (762, 381)), (1, None)])
def test_a_resolution_in_exif_alone(unit: int | None, dpi: tuple[int, int] | None) -> None:
    exif = Image.Exif()
    exif[0x011A], exif[0x011B] = 300.0, 150.0
    if unit:
        exif[0x0128] = unit
    assert open_image(file_bytes(sample_image(), "WEBP", exif=exif), "init_image", 10**6).dpi == dpi
