"""Files out: the answer's encoding, with its profile, its resolution, its parameters and its mark."""

import base64
import io
import zlib
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

FORMATS = ("png", "jpeg", "webp")
LONGEST_SIDE = {"jpeg": 65_500, "webp": 16_383}  # pixels that the formats can have
INCH = 2  # EXIF's unit of a resolution
_MAX_EXIF = 65_000  # bytes of a JPEG's EXIF, less its head
_MARK = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" Iptc4xmpExt:DigitalSourceType='
    '"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
# IPTC's DigitalSourceType
GENERATED, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
ENHANCED = "algorithmicallyEnhanced"


@dataclass(frozen=True)
class SideData:
    """What an answer's file says beside its pixels.

    Attributes:
        parameters: the text that AUTOMATIC1111 writes; None for none.
        mark: GENERATED, COMPOSITE or ENHANCED, or None.
    """

    profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    parameters: str | None = None
    mark: str | None = None


def encode(
    image: Image.Image, format: str, quality: int, side: SideData, keep_alpha: bool = False
) -> tuple[str, list[str]]:
    """An RGB or RGBA image as a base64 file, and sentences about what could not be done.

    An opaque image is written as RGB, with `keep_alpha` only if the format has no alpha.

    For PNG, zlib's level 1 with its run-length strategy is lossless, six times faster than level 6 and, after PNG's
    filters, smaller than level 1 by itself (docs/performance.md).
    """
    warnings = []
    options: dict[str, Any] = {}
    may_drop_alpha = format == "jpeg" or not keep_alpha
    if image.mode == "RGBA" and may_drop_alpha and image.getchannel("A").getextrema()[0] == 255:
        image = image.convert("RGB")
    if side.profile:
        options["icc_profile"] = side.profile
    if side.dpi:
        options["dpi"] = side.dpi
    if format == "png":
        options |= {"compress_level": 1, "compress_type": zlib.Z_RLE, "pnginfo": _chunks(side)}
    else:
        options["quality"] = quality
        if image.mode == "RGBA" and format == "jpeg":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("RGB")
            warnings.append("JPEG has no transparency: the image lies on white. output_format=png keeps it.")
        if side.mark:
            options["xmp"] = _MARK.format(kind=side.mark).encode()
        # a WebP has no other place for its resolution
        exif = _exif(side.parameters, side.dpi if format == "webp" else None)
        if exif:
            if format == "jpeg" and len(exif) > _MAX_EXIF:
                warnings.append("The parameters are too long for this format: the file is without them.")
            else:
                options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return base64.b64encode(buffer.getbuffer()).decode("ascii"), warnings


def _chunks(side: SideData) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    if side.parameters:
        chunks.add_text("parameters", side.parameters)
    if side.mark:
        chunks.add_itxt("XML:com.adobe.xmp", _MARK.format(kind=side.mark))
    return chunks


def _exif(parameters: str | None, dpi: tuple[float, float] | None) -> bytes:
    """EXIF with the text as its UserComment; empty if there is nothing to say."""
    exif = Image.Exif()
    if parameters:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
    if dpi:
        exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = dpi
        exif[ExifTags.Base.ResolutionUnit] = INCH
    return exif.tobytes() if parameters or dpi else b""


def usual_base64_bytes(width: int, height: int, format: str) -> int:
    """About what a photograph of this size has, encoded; most other images have less."""
    return width * height * 2 if format == "png" else width * height // 2
