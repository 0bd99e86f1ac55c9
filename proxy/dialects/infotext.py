"""The text that AUTOMATIC1111's web UI writes into its images: found in a file without its pixels, and its values."""

import json
import re
import struct
from collections.abc import Iterator

MAX_PARTS = 10_000  # of a file that are looked at
MAX_LINE = 20_000  # characters of the line with the values
LEAST_VALUES = 3  # a last line with fewer belongs to the prompt
# it begins with a letter: with spaces before it, a line of them would take its square in time
_VALUE = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NEGATIVE = "Negative prompt:"
_EXIF, _EXIF_IFD, _USER_COMMENT = b"Exif\0\0", 0x8769, 0x9286


WITH_TEXT = _PNG, _JPEG, _RIFF = b"\x89PNG", b"\xff\xd8", b"RIFF"  # how files begin that may have such a text


def text_of(data: bytes) -> str:
    """The text of a PNG, JPEG or WebP file; empty if it has none, or if the file is damaged."""
    try:
        if data.startswith(_PNG):
            return next(_texts_of_png(data), "")
        if data.startswith(_JPEG):
            return next(_comments(_segments(data)), "")
        if data.startswith(_RIFF):
            return next(_comments(_chunks(data)), "")
    except (struct.error, IndexError):
        pass
    return ""


def values_of(text: str) -> dict[str, str]:
    """The text's values by their names, as the web UI's `png-info` has them: `Size` is `Size-1` and `Size-2`."""
    head, _, last = text.strip().rpartition("\n")
    pairs = _VALUE.findall(last[:MAX_LINE])
    if len(pairs) < LEAST_VALUES:
        head, pairs = f"{head}\n{last}", []
    prompt, _, negative = f"\n{head}".partition(f"\n{_NEGATIVE}")
    values = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for name, value in pairs:
        value = _unquoted(value)
        if size := _SIZE.fullmatch(value):
            values |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            values[name] = value
    return {"Clip skip": "1", "RNG": "GPU"} | values


def _unquoted(value: str) -> str:
    """The web UI and this server write a value as JSON where it would be ambiguous."""
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value.strip()


def _texts_of_png(data: bytes) -> Iterator[str]:
    at = 8
    for _ in range(MAX_PARTS):
        if at >= len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"tEXt", b"iTXt"):
            keyword, _, text = data[at + 8 : at + 8 + length].partition(b"\0")
            if keyword == b"parameters" and kind == b"tEXt":
                yield text.decode("latin-1")
            elif keyword == b"parameters" and text[0] == 0:  # not compressed; a language and a translation come first
                yield text[2:].split(b"\0", 2)[2].decode("utf-8", "replace")
        at += 12 + length


def _segments(data: bytes) -> Iterator[bytes]:
    """The EXIF of a JPEG."""
    at = 2
    for _ in range(MAX_PARTS):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker == 0xFFDA or marker < 0xFF00:  # the pixels, or no marker
            return
        if marker == 0xFFE1 and data.startswith(_EXIF, at + 4):
            yield data[at + 4 : at + 2 + length]
        at += 2 + length


def _chunks(data: bytes) -> Iterator[bytes]:
    """The EXIF of a WebP."""
    at = 12
    for _ in range(MAX_PARTS):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            yield data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _comments(parts: Iterator[bytes]) -> Iterator[str]:
    """The UserComment of each EXIF, if it is Unicode."""
    for part in parts:
        exif = part.removeprefix(_EXIF)
        order = "<" if exif.startswith(b"II") else ">"
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        _, folder = _entry(exif, order, first, _EXIF_IFD)
        count, at = _entry(exif, order, folder, _USER_COMMENT)
        comment = exif[at : at + count]
        if comment.startswith(b"UNICODE\0"):
            yield comment[8:].decode("utf-16-be", "replace")


def _entry(exif: bytes, order: str, at: int, wanted: int) -> tuple[int, int]:
    """The count and the value of an entry. Raises IndexError if there is none."""
    (entries,) = struct.unpack_from(f"{order}H", exif, at)
    for place in range(at + 2, at + 2 + 12 * entries, 12):
        tag, _, count, value = struct.unpack_from(f"{order}HHII", exif, place)
        if tag == wanted:
            return count, value
    raise IndexError(wanted)
