"""Images in and out: base64, PNG/JPEG/WebP files, masks, sizes.

Each limit is checked before the step that it protects: the length of the base64, then the header (format and number
of pixels), then the decoding.
"""

import base64
import binascii
import io
import re
import zlib

import numpy as np
from PIL import Image, ImageOps

from handlers.errors import InvalidRequest, RequestError, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_SCANS = 100  # of a progressive JPEG; ten are usual, and each takes a pass over all pixels
SIZE_MULTIPLE = 8  # every Stable Diffusion VAE and UNet takes sizes in multiples of this
_NOT_BASE64 = b"\r\n\t"


# kinds of files by a pattern of their first bytes; those of FORMATS are taken, the others are named in the refusal
KINDS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0\0\0\0",
    "Photoshop (PSD)": rb"8BPS\0",
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIC": rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "SVG": rb"\s*<(\?xml|svg|!DOCTYPE svg)",
    "PDF": rb"%PDF-",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "ZIP": rb"PK\x03\x04",
}
TAKEN = "a PNG, JPEG or WebP file"


def kind_of(data: bytes) -> str | None:
    """The kind of file that the bytes begin as, by KINDS."""
    return next((kind for kind, start in KINDS.items() if re.match(start, data[:64], re.DOTALL)), None)


def is_file(data: bytes) -> bool:
    """Whether the bytes are a file's own, and not base64 text: of a known kind, or of any that is not ASCII."""
    return kind_of(data) is not None or not data[:64].isascii()


def decode_base64(text: bytes, field: str) -> bytes:
    """Decodes base64 as real clients send it.

    Accepts a `data:…;base64,` prefix, line breaks, missing padding, the URL-safe alphabet, and spaces from clients that
    do not escape `+` in a form. Raises InvalidRequest for anything else.
    """
    text = text.strip()
    if text[:5].lower() == b"data:":
        _, comma, text = text.partition(b",")
        if not comma:
            raise InvalidRequest(f"{field} starts with 'data:' but has no comma before its base64 text.")
        text = text.strip()
    text = text.translate(bytes.maketrans(b" -_", b"++/"), _NOT_BASE64).rstrip(b"=")
    if not text:
        raise InvalidRequest(f"{field} is empty: send {TAKEN} as base64.")
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        raise InvalidRequest(f"{field} is not valid base64: send {TAKEN} as base64.") from None


def open_image(data: bytes, field: str, max_pixels: int) -> Image.Image:
    """Decodes an image file, upright (EXIF), in any mode of Pillow's.

    Raises InvalidRequest for other formats and broken files, TooLarge for more than `max_pixels`.
    """
    kind = kind_of(data)
    if kind not in FORMATS:
        found = "not an image file that is known here"
        if kind:
            found = f"{'an' if kind[0] in 'AEIO' or kind == 'SVG' else 'a'} {kind} file"
        raise InvalidRequest(f"{field} is {found}: save it as PNG, JPEG or WebP.")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise TooLarge(
                f"{field} has {image.width} x {image.height} pixels; this server takes at most {max_pixels} in all. "
                "Send a smaller image."
            )
        if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_SCANS:
            raise InvalidRequest(f"{field} is a JPEG with more than {MAX_SCANS} scans: save it again.")
        image.load()
        return ImageOps.exif_transpose(image)
    except (RequestError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise TooLarge(f"{field} has far more pixels than the {max_pixels} that this server takes.") from None
    except Exception:  # for damaged files, Pillow's decoders raise a dozen kinds, struct.error and TypeError among them
        raise InvalidRequest(f"{field} is damaged or incomplete: it cannot be decoded.") from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale to 8 bit by its high byte; Pillow's own conversion would clip it to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image's colours as RGB; the alpha channel is dropped, so every pixel keeps its value."""
    image = _eight_bit(image)
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def to_mask(image: Image.Image) -> Image.Image:
    """The mask as greyscale: 255 = replace, 0 = keep.

    A mask whose shape is in its alpha channel alone (transparent = replace) is recognised by its colours: the visible
    part is one single colour, or a coloured image with holes.
    """
    image = _eight_bit(image)
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA"))
        colour, alpha = pixels[..., :3], pixels[..., 3]
        if alpha.min() < 255:
            visible = colour[alpha > 0].astype(np.int16)
            grey = visible.size == 0 or np.ptp(visible, axis=1).max() <= 8
            uniform = visible.size == 0 or np.ptp(visible) <= 8
            if uniform or not grey:
                return Image.fromarray(255 - alpha)
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            return Image.alpha_composite(black, image.convert("RGBA")).convert("L")
    return image.convert("RGB").convert("L")


def nearest_size(value: int, low: int, high: int) -> int:
    """The valid size (a multiple of 8 within low … high) nearest to `value`, in pixels."""
    legal_low = -(-low // SIZE_MULTIPLE) * SIZE_MULTIPLE
    legal_high = high // SIZE_MULTIPLE * SIZE_MULTIPLE
    return max(legal_low, min(legal_high, (value + SIZE_MULTIPLE // 2) // SIZE_MULTIPLE * SIZE_MULTIPLE))


def working_size(width: int, height: int, low: int, high: int) -> tuple[int, int]:
    """The size (width, height) at which the model generates an image of this size: the nearest valid one."""
    scale = min(1.0, high / max(width, height))
    return nearest_size(round(width * scale), low, high), nearest_size(round(height * scale), low, high)


def fixed_model_size(width: int, height: int, longer_side: int) -> tuple[int, int]:
    """The size (width, height) at which a fixed-size model generates: of the same shape, but at most 2 : 1."""
    scale = longer_side / max(width, height)
    low = longer_side // 2
    return nearest_size(round(width * scale), low, longer_side), nearest_size(round(height * scale), low, longer_side)


def resize_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size`; untouched if it has that size already."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def paste_back(init: Image.Image, result: Image.Image, mask: Image.Image) -> Image.Image:
    """`result` where the mask is white, the very pixels of `init` where it is black, a blend where it is grey."""
    return Image.composite(result, init, mask)


def encode_png(image: Image.Image) -> str:
    """The image as a base64 PNG.

    zlib's level 1 with its run-length strategy is lossless, six times faster than level 6 and, after PNG's filters,
    smaller than level 1 by itself (docs/performance.md).
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return base64.b64encode(buffer.getbuffer()).decode("ascii")


def max_png_base64_bytes(width: int, height: int) -> int:
    """An upper bound of `encode_png`'s length for an RGB image of this size, in bytes."""
    raw = height * (3 * width + 1)
    return (raw + raw // 1000 + 65_536) * 4 // 3
