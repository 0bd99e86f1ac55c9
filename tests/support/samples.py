"""Small images and request bodies for tests."""

import base64
import io
import zlib
from typing import Any

import numpy as np
from PIL import Image


def sample_image(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """A colourful RGB image: smooth gradients with noise, so that no two pixels agree by chance."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    return Image.fromarray((base * 0.8 + rng.integers(0, 50, (height, width, 3))).astype(np.uint8))


def half_mask(width: int = 64, height: int = 64) -> Image.Image:
    """White (replace) on the left half, black (keep) on the right."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def file_bytes(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def b64(image: Image.Image | bytes, format: str = "PNG", **options: Any) -> str:
    data = image if isinstance(image, bytes) else file_bytes(image, format, **options)
    return base64.b64encode(data).decode()


def decode(answer_image: dict[str, Any]) -> np.ndarray:
    """An image of an answer as (height, width, 3) whole numbers that can be subtracted."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer_image["base64"])))).astype(int)


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes whose header promises billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )
