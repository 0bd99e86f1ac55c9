"""Masks: which file means what, their shape, grown and feathered, and as a pipeline takes them."""

import numpy as np
from PIL import Image, ImageFilter

from handlers.errors import InvalidRequest
from handlers.imaging.colours import split
from handlers.imaging.sizes import SIZE_MULTIPLE

MODES = ("auto", "luminance", "alpha", "transparent", "alpha_or_luminance")
ROUNDING = 2  # pixels by which a mask's shape may differ
FAINT = 32  # alpha below which a browser's canvas has rounded the colours away
ALIKE = 8  # difference of two values that mean the same
LIGHT = 128  # a value of at least this is light


def read_mask(image: Image.Image, mode: str, field: str) -> tuple[Image.Image, list[str]]:
    """A mask's file as greyscale, 255 = replace, 0 = keep, by one of MODES, and sentences about doubtful ones.

    Its colour profile plays no part. `auto`, for a mask with transparency, goes by its visible part:
    - light, in one colour or greys: strokes on an empty layer, which are replaced (`alpha`);
    - dark, or many-coloured: an image with holes, and the holes are replaced (`transparent`);
    - greys from dark to light: a black-and-white mask, read as if on black (`luminance`).

    `alpha_or_luminance` is `alpha` for a mask with transparency, otherwise `luminance`. `transparent`, for a mask
    without transparency, is `luminance` too.

    A colour is light if its largest channel is: pure red and blue, which editors show masks in, are strokes.
    """
    colour, alpha = split(image, field)
    warnings: list[str] = []
    if mode == "alpha_or_luminance":  # as AUTOMATIC1111's web UI reads masks
        mode = "luminance" if alpha is None else "alpha"
    if mode == "auto":
        mode = "luminance"
        if alpha is not None:
            mode, is_one_colour = _meaning(np.asarray(colour.convert("RGB")), np.asarray(alpha))
            if is_one_colour and mode == "transparent":
                warnings = [
                    f"The visible part of {field} has one dark colour, so its transparent part is replaced: "
                    "mask_mode=alpha replaces the visible part."
                ]
    if mode == "transparent" and alpha is None:
        # programs that ask for transparent masks also get black-and-white ones, and an opaque mask has no holes
        mode, warnings = "luminance", [f"{field} has no transparent part, so its white part is replaced."]
    if mode != "luminance":
        if alpha is None:
            warnings.append(f"{field} has no transparent part, so with mask_mode=alpha all of the image is replaced.")
            alpha = Image.new("L", image.size, 255)
        return (alpha if mode == "alpha" else inverted(alpha)), warnings
    grey = colour.convert("RGB").convert("L")
    return (grey if alpha is None else Image.composite(grey, Image.new("L", grey.size), alpha)), warnings


def _meaning(colour: np.ndarray, alpha: np.ndarray) -> tuple[str, bool]:
    """The mode that `auto` means for (height, width, 3) colours and their (height, width) alpha; whether it is one
    colour.
    """
    visible = colour[alpha >= max(1, min(FAINT, alpha.max()))]  # (pixels, 3)
    if not len(visible):
        return "alpha", False  # an empty layer: nothing was painted
    darkest, lightest = visible.min(axis=0), visible.max(axis=0)
    is_grey = (visible.max(axis=1) - visible.min(axis=1)).max() <= ALIKE
    is_one_colour = bool((lightest - darkest).max() <= ALIKE)
    if not is_grey and not is_one_colour:
        return "transparent", False
    if darkest.max() >= LIGHT:
        return "alpha", is_one_colour
    return ("transparent" if is_one_colour or lightest.max() < LIGHT else "luminance"), is_one_colour


def inverted(mask: Image.Image) -> Image.Image:
    return mask.point(range(255, -1, -1))


def fit_mask(mask: Image.Image, size: tuple[int, int], field: str) -> Image.Image:
    """The mask at the init image's `size`, scaled smoothly. Raises InvalidRequest if it has another shape."""
    if mask.size == size:
        return mask
    (width, height), (wide, high) = mask.size, size
    if min(abs(width - height * wide / high), abs(height - width * high / wide)) > ROUNDING:
        raise InvalidRequest(
            f"{field} has {width} x {height} pixels and init_image, upright, {wide} x {high}, which is another shape: "
            "send a mask of the init image's size."
        )
    return mask.resize(size, Image.Resampling.BILINEAR)


def refine(mask: Image.Image, grow: int, blur: int) -> Image.Image:
    """The mask, grown by `grow` pixels, then blurred by a Gaussian with a standard deviation of `blur` pixels."""
    box = mask.getbbox()
    if box is None or not (grow or blur):
        return mask
    margin = grow + 3 * blur  # beyond it, a blur of 8 bits is black
    box = (max(0, box[0] - margin), max(0, box[1] - margin),
           min(mask.width, box[2] + margin), min(mask.height, box[3] + margin))  # fmt: skip
    part = mask.crop(box)
    if grow:
        values = np.asarray(part)
        part = Image.fromarray(_largest_near(_largest_near(values, grow, 0), grow, 1))
    if blur:
        part = part.filter(ImageFilter.GaussianBlur(blur))
    refined = Image.new("L", mask.size)
    refined.paste(part, box)
    return refined


def _largest_near(values: np.ndarray, reach: int, axis: int) -> np.ndarray:
    """The largest value within `reach` of each one along an axis, by windows that double."""
    padding = [(reach, reach) if side == axis else (0, 0) for side in range(values.ndim)]
    largest, width = np.swapaxes(np.pad(values, padding), 0, axis), 1  # its rows are largest of `width` rows
    while width < 2 * reach + 1:
        step = min(width, 2 * reach + 1 - width)
        largest, width = np.maximum(largest[:-step], largest[step:]), width + step
    return np.swapaxes(largest, 0, axis)


def pipeline_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask of a crop as a pipeline takes it, of `size`: 255 wherever the mask is above black, otherwise 0.

    Pipelines keep one of 8 x 8 pixels for the latents, so whatever an edge or a small spot touches is white as a whole
    block. A hard mask of the same size stays as it is: its image is bit-identical to the stock pipeline's.
    """
    above = mask.point([0] + [255] * 255)
    if mask.size == size and mask.histogram()[1:255] == [0] * 254:
        return above
    values = _any_in_blocks(np.asarray(above), size[1] // SIZE_MULTIPLE, 0)
    values = _any_in_blocks(values, size[0] // SIZE_MULTIPLE, 1)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def _any_in_blocks(values: np.ndarray, blocks: int, axis: int) -> np.ndarray:
    """The largest value within each of so many equal blocks along an axis; one that two blocks share is in both."""
    length = values.shape[axis]
    starts = np.arange(blocks) * length // blocks
    lasts = -(-np.arange(1, blocks + 1) * length // blocks) - 1
    largest: np.ndarray = np.maximum(np.maximum.reduceat(values, starts, axis=axis), values.take(lasts, axis=axis))
    return largest
