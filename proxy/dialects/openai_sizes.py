"""The size of an answer before it is there, for the partial images of a stream."""

import base64
import struct
from collections.abc import Mapping

from proxy.served import Served

PNG = b"\x89PNG\r\n\x1a\n"
HEAD = 24  # bytes of a PNG, at whose end its width and height are


async def size_of_answer(native: Mapping[str, str | bytes], served: Served, archive: str, task: str) -> str | None:
    """`512x512`, from the native fields; None if it is not known, as with an image that is no PNG."""
    if task == "txt2img":
        sides = {**await served.defaults(archive, task), **native}
        return f"{sides['width']}x{sides['height']}" if "width" in sides else None
    return _size_of_png(native["init_image"])


def _size_of_png(image: str | bytes) -> str | None:
    """Of a file, or of one as base64 text, perhaps in a data: address."""
    if isinstance(image, str):
        text = image[:200].strip()
        text = text.partition(",")[2] if text.startswith("data:") else text
        try:
            image = base64.b64decode(text[: HEAD // 3 * 4])
        except ValueError:
            return None
    if not image.startswith(PNG) or len(image) < HEAD:
        return None
    width, height = struct.unpack_from(">II", image, HEAD - 8)
    return f"{width}x{height}"
