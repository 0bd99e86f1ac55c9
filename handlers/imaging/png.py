"""What Pillow sees of a PNG file: the image, and the side data that has a meaning here."""

import struct
import zlib
from collections import Counter

from handlers.errors import InvalidRequest

SIGNATURE = b"\x89PNG\r\n\x1a\n"
IMAGE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
SIDE = (b"tRNS", b"iCCP", b"pHYs", b"eXIf")  # transparency, colour profile, resolution, orientation
MAX_SIDE = 1_000_000  # bytes of a side chunk, unpacked: Pillow refuses a whole file for a longer one
MAX_CHUNKS = 100_000


def bits_of(data: bytes) -> int:
    """The bits of a sample, from the header of a whole PNG file."""
    return data[24]


def needed_chunks(data: bytes, field: str, notes: list[str]) -> bytes:
    """The file with no other chunks than IMAGE and SIDE. Zipped texts, which may be huge, are thus never unpacked.

    A side chunk that is damaged or too long, or comes after another of its kind, is left out, and `notes` gets a
    sentence. Raises InvalidRequest for more chunks than any image needs, struct.error or IndexError for a file that
    ends within a chunk's head.
    """
    view, at = memoryview(data), len(SIGNATURE)
    kept: list[bytes | memoryview] = [SIGNATURE]
    count: Counter[bytes] = Counter()  # by kind: an image has one side chunk of each, and thousands would take minutes
    for _ in range(MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        count[kind] += 1
        if kind in IMAGE or (kind in SIDE and count[kind] == 1 and _is_sound(data, at, length, kind, field, notes)):
            kept.append(view[at:end])
        if kind == b"IEND" or end >= len(data):
            if repeated := [kind.decode() for kind in SIDE if count[kind] > 1]:
                notes.append(f"{field} has several {', '.join(repeated)} chunks: the first one counts.")
            return b"".join(kept)
        at = end
    raise InvalidRequest(f"{field} is a PNG of more than {MAX_CHUNKS} chunks: save it again.")


def _is_sound(data: bytes, at: int, length: int, kind: bytes, field: str, notes: list[str]) -> bool:
    content = data[at + 8 : at + 8 + length]
    sound = length <= MAX_SIDE and data[at + 8 + length : at + 12 + length] == struct.pack(
        ">I", zlib.crc32(kind + content)
    )
    if sound and kind == b"iCCP":
        try:
            packed = content[content.index(b"\0") + 2 :]
            sound = len(zlib.decompressobj().decompress(packed, MAX_SIDE)) < MAX_SIDE
        except (zlib.error, ValueError):
            sound = False
    if not sound:
        notes.append(f"{field} has a damaged or too long {kind.decode()} chunk, which is ignored.")
    return sound
