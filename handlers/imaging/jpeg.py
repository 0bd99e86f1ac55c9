"""Where the image of a JPEG file ends: phones add videos, gain maps and further images behind it."""

import re

from handlers.errors import InvalidRequest

MAX_SCANS = 100  # of a progressive JPEG; ten are usual, and each takes a pass over all pixels
MAX_SEGMENTS = 10_000
_END, _SCAN = 0xD9, 0xDA
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])", re.DOTALL)  # those with a length, and the end's


def still_image(data: bytes, field: str) -> tuple[bytes, bool]:
    """The file up to its image's end, and whether it has one; else an end is added, for what is there to be decoded.

    Raises InvalidRequest for more scans or segments than any image needs.
    """
    at, scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return data + b"\xff\xd9", False
        if marker[1][0] == _END:
            return data[: marker.end()], True
        scans += marker[1][0] == _SCAN
        if scans > MAX_SCANS:
            break
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    raise InvalidRequest(
        f"{field} is a JPEG with more than {MAX_SCANS} scans or {MAX_SEGMENTS} segments: save it again."
    )
