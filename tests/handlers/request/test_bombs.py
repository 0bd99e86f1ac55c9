"""Small files that would become large: refused, or read within bounds, in every format."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from handlers.errors import RequestError
from handlers.imaging.files import open_image
from handlers.imaging.jpeg import MAX_SCANS
from tests.support.paths import HOME
from tests.support.running import HANG_S
from tests.support.samples import file_bytes, sample_image

MAX_PIXELS = 16_000_000
HUGE = 50_000
MEMORY = 1_500_000_000  # of a process's address space, in which Python and NumPy have several hundred MB
DECODE = f"""
import resource, sys
from handlers.errors import RequestError
from handlers.imaging.documents import read_document
from handlers.imaging.files import open_image
from handlers.imaging.masks import read_mask
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
try:
    file = open_image(sys.stdin.buffer.read(), "init_image", {MAX_PIXELS})
    read_mask(file.image, "auto", "mask_image")
    print(read_document(file, "init_image")[0].size)
except RequestError as error:
    print(error.status, error)
"""


def png(width: int, height: int, *chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, chunk(b"IEND", b"")]
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(count: int) -> bytes:
    """So many zeros, compressed. After a full flush the next block is alike, so only the first million takes time."""
    packer = zlib.compressobj(9, wbits=-15)
    million = packer.compress(bytes(1_000_000)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", count % 65_521, 1)  # Adler-32
    return b"\x78\xda" + million * (count // 1_000_000) + packer.flush() + checksum


def huge_png() -> bytes:
    return png(HUGE, HUGE, chunk(b"IDAT", zeros(1_000_000)))


def huge_jpeg() -> bytes:
    file = bytearray(file_bytes(sample_image(16, 16), "JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = struct.pack(">HH", HUGE, HUGE)
    return bytes(file)


def huge_webp() -> bytes:
    file = bytearray(file_bytes(sample_image(16, 16), "WEBP"))
    at = file.index(b"\x9d\x01\x2a") + 3
    file[at : at + 4] = struct.pack("<HH", 16_383, 16_383)
    return bytes(file)


def huge_gif() -> bytes:
    file = bytearray(file_bytes(sample_image(16, 16), "GIF"))
    file[6:10] = struct.pack("<HH", HUGE, HUGE)
    return bytes(file)


def huge_bmp() -> bytes:
    file = bytearray(file_bytes(sample_image(16, 16), "BMP"))
    file[18:26] = struct.pack("<ii", HUGE, HUGE)
    return bytes(file)


def huge_tiff() -> bytes:
    return with_tiff_tags(file_bytes(sample_image(16, 16), "TIFF"), {256: HUGE, 257: HUGE})


def huge_avif() -> bytes:
    file = bytearray(file_bytes(sample_image(16, 16), "AVIF"))
    at = file.index(b"ispe") + 8
    file[at : at + 8] = struct.pack(">II", 16_000, 16_000)
    return bytes(file)


def with_tiff_tags(file: bytes, values: dict[int, int]) -> bytes:
    """A little-endian TIFF file with other values of its tags that hold one number."""
    changed = bytearray(file)
    start = struct.unpack_from("<I", file, 4)[0]
    for i in range(struct.unpack_from("<H", file, start)[0]):
        at = start + 2 + 12 * i
        tag = struct.unpack_from("<H", file, at)[0]
        if tag in values:
            struct.pack_into("<HII", changed, at + 2, 4, 1, values[tag])  # a LONG
    return bytes(changed)


@pytest.mark.parametrize("make", [huge_png, huge_jpeg, huge_webp, huge_gif, huge_bmp, huge_tiff, huge_avif])
def test_a_header_with_too_many_pixels_is_enough(make: Callable[[], bytes]) -> None:
    with pytest.raises(RequestError, match="pixels"):
        open_image(make(), "init_image", MAX_PIXELS)


def more_than_its_pixels() -> bytes:
    return png(64, 64, chunk(b"IDAT", zeros(2_000_000_000)))


def text() -> bytes:
    return png(64, 64, chunk(b"zTXt", b"Comment\0\0" + zeros(500_000_000)), chunk(b"IDAT", zeros(1_000_000)))


def profile() -> bytes:
    return png(64, 64, chunk(b"iCCP", b"sRGB\0\0" + zeros(500_000_000)), chunk(b"IDAT", zeros(1_000_000)))


def all_that_is_allowed() -> bytes:
    return png(4000, 4000, chunk(b"IDAT", zeros(49_000_000)))


def many_frames(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (1000, 1000), (i, 0, 0)) for i in range(100)]
    quick: dict[str, dict[str, int]] = {"AVIF": {"speed": 10}, "PNG": {"compress_level": 1}}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **quick.get(kind, {}))
    return buffer.getvalue()


def zipped_tiff(**options: Any) -> bytes:
    return file_bytes(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_adobe_deflate", **options)


def tiff_of_large_tiles() -> bytes:
    file = file_bytes(Image.new("RGB", (64, 64)), "TIFF", compression="tiff_adobe_deflate", tiffinfo={322: 64, 323: 64})
    return with_tiff_tags(file, {322: HUGE, 323: HUGE})


def tiff_of_one_strip() -> bytes:
    """Whose strip says that it has far more rows than the image."""
    return with_tiff_tags(zipped_tiff(), {278: 2**31 - 1})


def tiff_of_many_samples() -> bytes:
    return with_tiff_tags(zipped_tiff(), {277: 60_000})


@pytest.mark.parametrize("make", [tiff_of_large_tiles, tiff_of_one_strip, tiff_of_many_samples])
def test_a_tiff_is_decoded_within_bounds_whatever_its_tags_say(make: Callable[[], bytes]) -> None:
    done = subprocess.run([sys.executable, "-c", DECODE], input=make(), capture_output=True, cwd=HOME, timeout=HANG_S)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith(("(64, 64)", "400", "413"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (more_than_its_pixels, "(64, 64)"),
        (text, "(64, 64)"),
        (profile, "(64, 64)"),
        (all_that_is_allowed, "(4000, 4000)"),
        (lambda: many_frames("PNG"), "(1000, 1000)"),
        (lambda: many_frames("WEBP"), "(1000, 1000)"),
        (lambda: many_frames("GIF"), "(1000, 1000)"),
        (lambda: many_frames("TIFF"), "(1000, 1000)"),
        (lambda: many_frames("AVIF"), "(1000, 1000)"),
    ],
)
def test_what_a_file_unpacks_to_is_bounded(make: Callable[[], bytes], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", DECODE], input=make(), capture_output=True, cwd=HOME, timeout=HANG_S)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith(said)


def test_a_jpeg_has_not_more_scans_than_anybody_needs() -> None:
    file = file_bytes(sample_image(64, 64), "JPEG")
    at = file.rindex(b"\xff\xda")
    scan = file[at:-2]
    with pytest.raises(RequestError, match="scans"):
        open_image(file[:at] + scan * (MAX_SCANS + 1) + b"\xff\xd9", "init_image", MAX_PIXELS)
    buffer = io.BytesIO()
    sample_image(64, 64).convert("RGB").save(buffer, "JPEG", progressive=True)
    assert open_image(buffer.getvalue(), "init_image", MAX_PIXELS).image.size == (64, 64)
