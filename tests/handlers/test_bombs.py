"""Small files that would become large: refused, or read within bounds, in every format."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

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
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(count // 1_000_000)) + packer.flush()


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


@pytest.mark.parametrize("make", [huge_png, huge_jpeg, huge_webp])
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
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (more_than_its_pixels, "(64, 64)"),
        (text, ""),
        (profile, ""),
        (all_that_is_allowed, "(4000, 4000)"),
        (lambda: many_frames("PNG"), "(1000, 1000)"),
        (lambda: many_frames("WEBP"), "(1000, 1000)"),
    ],
)
def test_what_a_file_unpacks_to_is_bounded(make: Callable[[], bytes], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", DECODE], input=make(), capture_output=True, cwd=HOME, timeout=HANG_S)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().startswith((said,) if said else ("(64, 64)", "400"))


def test_a_jpeg_has_not_more_scans_than_anybody_needs() -> None:
    file = file_bytes(sample_image(64, 64), "JPEG")
    at = file.rindex(b"\xff\xda")
    scan = file[at:-2]
    with pytest.raises(RequestError, match="scans"):
        open_image(file[:at] + scan * (MAX_SCANS + 1) + b"\xff\xd9", "init_image", MAX_PIXELS)
    buffer = io.BytesIO()
    sample_image(64, 64).convert("RGB").save(buffer, "JPEG", progressive=True)
    assert open_image(buffer.getvalue(), "init_image", MAX_PIXELS).image.size == (64, 64)
