"""Files in: base64, kinds of files, limits, decoding.

Each limit is checked before the step that it protects: the length of the base64, then the header (format and number
of pixels), then the decoding.
"""

import binascii
import io
import math
import re
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from handlers.errors import InvalidRequest, RequestError, TooLarge
from handlers.imaging.jpeg import still_image
from handlers.imaging.png import bits_of, needed_chunks

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")  # Pillow's names
# Pillow's blocks of memory, of 16 MB by default: those that malloc takes from the system, and gives back (launch/
# processes.py has its threshold), leave no holes in a heap that grew to gigabytes
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]
PARTS = 8  # a JPEG that lost the last of so many parts of its rows is refused
_NOT_BASE64 = b"\r\n\t"

# kinds of files by a pattern of their first bytes; those of FORMATS are taken, the others are named in the refusal
KINDS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF.{4}WEBP",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{4}\0\0\0\0",
    "PSD": rb"8BPS\0",
    "AVIF": rb".{4}ftyp(avi[fs]|mif1.{4,40}avif)",
    "HEIC": rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
    "SVG": rb"\s*<(\?xml|svg|!DOCTYPE svg)",
    "PDF": rb"%PDF-",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "ZIP": rb"PK\x03\x04",
}
PER_INCH = {2: 1, 3: 2.54}  # by EXIF's unit of a resolution
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TAKEN = "a PNG, JPEG, WebP, TIFF, GIF, BMP or AVIF file"


class TooManyPixels(TooLarge):
    """An image has more than it may; `pixels` is how many."""

    def __init__(self, message: str, pixels: int) -> None:
        super().__init__(message)
        self.pixels = pixels


@dataclass(frozen=True)
class ImageFile:
    """A decoded file, upright.

    Attributes:
        image: in any mode of Pillow's; its `info` has nothing but `transparency`.
        profile: the embedded ICC profile.
        dpi: pixels per inch, across and down.
        warnings: sentences about what was mended.
    """

    image: Image.Image
    profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()


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


def open_image(data: bytes, field: str, max_pixels: int) -> ImageFile:
    """Decodes the first frame of an image file.

    Raises InvalidRequest for other kinds and broken files, TooManyPixels for more than `max_pixels`.
    """
    kind = kind_of(data)
    if kind not in FORMATS:
        found = "not an image file that is known here"
        if kind:
            found = f"{'an' if kind[0] in 'AEIO' or kind == 'SVG' else 'a'} {kind} file"
        raise InvalidRequest(f"{field} is {found}: save it as PNG.")
    notes: list[str] = []
    complete = True
    try:
        if kind == "PNG":
            data = needed_chunks(data, field, notes)
        elif kind == "JPEG":
            data, complete = still_image(data, field)
        image = _load(data, kind, field, max_pixels)
        if kind == "JPEG" and _ends_early(image):
            if not complete:
                raise ValueError(f"the last 1/{PARTS} of the image is missing")
            notes.append(f"{field} ends in plain grey: a part of its file may be missing.")
        elif not complete:
            notes.append(f"{field} lost the end of its file: its last rows may be grey.")
        return _described(image, kind == "PNG" and bits_of(data) == 16, tuple(notes))
    except (RequestError, MemoryError):
        raise
    except UnidentifiedImageError:
        if kind == "TIFF":
            raise _unreadable_tiff(field) from None
        raise InvalidRequest(f"{field} is damaged or incomplete: it cannot be decoded.") from None
    except Image.DecompressionBombError:
        raise TooLarge(f"{field} has far more pixels than the {max_pixels} that this server takes.") from None
    except Exception:  # for damaged files, Pillow's decoders raise a dozen kinds, struct.error and TypeError among them
        raise InvalidRequest(f"{field} is damaged or incomplete: it cannot be decoded.") from None


def _load(data: bytes, kind: str, field: str, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=(kind,))
    if (pixels := image.width * image.height) > max_pixels:
        raise TooManyPixels(
            f"{field} has {image.width} x {image.height} pixels; this server takes at most {max_pixels} in all. "
            "Send a smaller image.",
            pixels,
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_tiff(image, field)
    image.load()
    # Pillow keeps a file without its palette, and fails wherever it needs one
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("a palette is missing")
    return image


def _refuse_tiff(image: TiffImagePlugin.TiffImageFile, field: str) -> None:
    """Raises InvalidRequest for the kinds of TIFF that Pillow decodes to other values than the file's."""
    tags = image.tag_v2
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
    is_negative = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    is_float = 3 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ())  # which is refused by another sentence
    if (bits > 16 and not is_float) or (bits > 8 and (is_planar or is_negative)):
        raise _unreadable_tiff(field)


def _unreadable_tiff(field: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field} is a kind of TIFF that cannot be read here: save it as PNG, or as TIFF with 8 bits a channel."
    )


def _ends_early(image: Image.Image) -> bool:
    """Whether a decoder found something, but nothing for the last of PARTS, whose rows it fills with one grey."""
    rows = image.crop((0, image.height - math.ceil(image.height / PARTS), *image.size))
    grey = (127, 127) if image.mode == "CMYK" else (128, 128)
    return all(channel.getextrema() == grey for channel in rows.split()) and any(
        channel.getextrema() != grey for channel in image.split()
    )


def _described(image: Image.Image, sixteen_bits: bool, notes: tuple[str, ...]) -> ImageFile:
    """The image upright, with what its file says about it and nothing else."""
    info: dict[Any, Any] = image.info
    dpi = _dpi(_resolution(image))
    turn = _turn(image)
    # not by ImageOps.exif_transpose, which writes the EXIF anew, and raises where another of its fields is odd
    upright = image if turn is None else image.transpose(turn)
    if dpi and upright.size != image.size:
        dpi = dpi[1], dpi[0]
    transparency = info.get("transparency")
    if sixteen_bits and isinstance(transparency, tuple):  # Pillow decodes such an image to 8 bits, but not this colour
        transparency = tuple(value >> 8 for value in transparency)
    upright.info = {} if transparency is None else {"transparency": transparency}
    profile = info.get("icc_profile")
    return ImageFile(upright, profile if isinstance(profile, bytes) and profile else None, dpi, notes)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What puts the image upright, by EXIF's orientation; None for an upright image and for EXIF that is no EXIF."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # for damaged EXIF, Pillow raises SyntaxError, struct.error and others
        return None


def _resolution(image: Image.Image) -> Any:
    """Pixels per inch as the file has them: Pillow makes up 1 for a TIFF without, and 72 for a JPEG with other EXIF."""
    if image.format not in ("TIFF", "JPEG", "WEBP", "AVIF") or image.info.get("jfif_unit"):
        return image.info.get("dpi")
    try:
        exif = image.getexif()
        if ExifTags.Base.XResolution not in exif:
            return None
        if image.format in ("TIFF", "JPEG"):
            return image.info.get("dpi")
        unit = PER_INCH.get(exif.get(ExifTags.Base.ResolutionUnit, 2), 0)
        return [float(exif[name]) * unit for name in (ExifTags.Base.XResolution, ExifTags.Base.YResolution)]
    except Exception:  # as in _turn
        return None


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        across, down = float(value[0]), float(value[1])
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return (across, down) if 0 < across < 65536 and 0 < down < 65536 else None
