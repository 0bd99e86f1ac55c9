"""Colour profiles: any image as RGB, and between a document's RGB and the model's, which is sRGB. By LittleCMS."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from handlers.errors import InvalidRequest

SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # ICC's names of the spaces of Pillow's modes
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def split(image: Image.Image, field: str) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits deep, in the mode RGB, L, CMYK or LAB; and the alpha channel, if any pixel is transparent.

    Raises InvalidRequest for floating-point colours, whose range is not known.
    """
    if image.mode == "F":
        raise InvalidRequest(f"{field} has floating-point colours: save it with 8 bits a channel.")
    image = _eight_bit(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA" if image.mode in ("RGB", "P", "PA", "RGBA", "RGBa") else "LA")
        alpha = image.getchannel("A")
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
        if alpha.getextrema()[0] == 255:
            alpha = None
    if image.mode not in (*SPACES, "LAB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image, alpha


def as_rgb(image: Image.Image, profile: bytes | None, field: str) -> tuple[Image.Image, bytes | None, str | None]:
    """An image of `split` as RGB; the RGB profile that its colours are in, None for sRGB; a warning, if any.

    An RGB image stays as it is, to the bit. Other colours are converted to sRGB, by the profile if there is one.
    """
    space = SPACES.get(image.mode)
    if image.mode == "LAB":
        return _apply(image, ImageCms.createProfile("LAB"), _srgb()), None, None
    if profile is None:
        return image.convert("RGB"), None, None
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        named = own.profile.xcolor_space.strip()
        if named != space:
            warning = f"{field} has a colour profile for {named}, but its colours are {space}: the profile is ignored."
            return image.convert("RGB"), None, warning
        if image.mode != "RGB":
            return _apply(image, own, _srgb()), None, None
        _apply(Image.new("RGB", (1, 1)), own, _srgb())
    except _BROKEN:
        warning = f"The colour profile of {field} cannot be read: its colours are taken as sRGB."
        return image.convert("RGB"), None, warning
    try:
        from_srgb(Image.new("RGB", (1, 1)), profile)
    except _BROKEN:
        warning = f"The colour profile of {field} works in one direction only: the answer is in sRGB."
        return to_srgb(image, profile), None, warning
    return image, profile, None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB image in the colours of `profile` as sRGB; untouched without a profile."""
    return image if profile is None else _apply(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), _srgb())


def from_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An sRGB image in the colours of `profile`; untouched without a profile."""
    return image if profile is None else _apply(image, _srgb(), ImageCms.ImageCmsProfile(io.BytesIO(profile)))


def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _apply(image: Image.Image, source: Any, target: Any) -> Image.Image:
    """As Photoshop converts by default: relative colorimetric, with black point compensation."""
    converted = ImageCms.profileToProfile(
        image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    assert converted is not None
    converted.info = {}
    return converted


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greyscale to 8 bit by its high byte; Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray((np.clip(values, 0, 65535) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey
