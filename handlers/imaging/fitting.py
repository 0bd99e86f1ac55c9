"""An image at a size of another shape: stretched, cropped or padded."""

import numpy as np
from PIL import Image, ImageOps

from handlers.imaging.regions import Box

FITS = ("stretch", "crop", "pad")


def fitted(
    image: Image.Image, size: tuple[int, int], fit: str, resampling: Image.Resampling | None = None
) -> Image.Image:
    """The image at `size`, by one of FITS.

    `crop` keeps the largest part of its middle that has the shape of `size`. `pad` keeps all of it and repeats the
    pixels at its edges, as AUTOMATIC1111's web UI does.

    Args:
        resampling: by default Lanczos, but bilinear for masks and transparency, since Lanczos rings into what is black.
    """
    if resampling is None:
        resampling = Image.Resampling.LANCZOS if image.mode == "RGB" else Image.Resampling.BILINEAR
    if image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, resampling)
    if fit == "crop":
        return ImageOps.fit(image, size, resampling)
    scale = min(size[0] / image.width, size[1] / image.height)
    width, height = (max(1, min(most, round(side * scale))) for most, side in zip(size, image.size, strict=True))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    margins = [(top, size[1] - height - top), (left, size[0] - width - left)]
    values = np.asarray(image.resize((width, height), resampling))
    return Image.fromarray(np.pad(values, margins + [(0, 0)] * (values.ndim - 2), mode="edge"))


def middle(image: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest part of an image's middle that has the shape of `size`, in whole pixels."""
    width = max(1, min(image[0], round(image[1] * size[0] / size[1])))
    height = max(1, min(image[1], round(image[0] * size[1] / size[0])))
    left, top = (image[0] - width) // 2, (image[1] - height) // 2
    return left, top, left + width, top + height
