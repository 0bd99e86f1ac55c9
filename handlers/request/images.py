"""The images of a request: its init image and its mask, and what of them is generated. Imports no torch."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging import masks
from handlers.imaging.documents import FILLS, Document, read_document
from handlers.imaging.fitting import FITS, fitted
from handlers.imaging.regions import plan
from handlers.imaging.sizes import ModelSizes
from handlers.request.reader import Reader

MAX_REACH, MAX_PADDING = 256, 10_000  # pixels that a mask may grow or blur by, and that are around it
MAX_SIDE = 10**6  # pixels that `width` and `height` may name where they decide nothing
FAINT_MASK = 64  # of 255; a mask that is nowhere above it hardly replaces anything


def read_init_image(read: Reader, config: HandlerConfig, sizes: ModelSizes) -> dict[str, Any]:
    """The init image, brought to the size that the request asks for if it says how."""
    document, warnings = _read_document(read, config)
    document = replace(document, image=_read_fit(read, config, document.size)(document.image))
    return {"init_image": document, "warnings": (*warnings, *_unfitted(read, document, sizes))}


def _read_document(read: Reader, config: HandlerConfig) -> tuple[Document, list[str]]:
    return read_document(read.image("init_image", config), "init_image")


def _read_fit(read: Reader, config: HandlerConfig, own: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    """What brings an image to the request's size; without `fit`, what leaves it as it is, whatever size is sent.

    The init image's `own` size may be any.

    Raises InvalidRequest for a `fit` without a size.
    """
    fit = read.choice("fit", FITS, "")
    missing = [name for name in ("width", "height") if not read.has(name)]
    if not fit or (read.has("width") and (_side(read, "width"), _side(read, "height")) == own):
        return lambda image: image
    if missing:
        raise InvalidRequest(f"fit={fit} needs the size that init_image is to have: send {' and '.join(missing)}.")
    size = read.size("width", 0, config), read.size("height", 0, config)
    return partial(fitted, size=size, fit=fit)


def _side(read: Reader, name: str) -> int:
    """0 for none."""
    return max(0, int(read.whole(name, 0, -1, MAX_SIDE)))


def _unfitted(read: Reader, document: Document, sizes: ModelSizes) -> list[str]:
    """A sentence about another size than the init image's; some clients always send the model's own."""
    sides = {name: _side(read, name) for name in ("width", "height")}
    sent = tuple(side or own for side, own in zip(sides.values(), document.size, strict=True))
    if sent in (document.size, sizes.native):
        return []
    names = ", ".join(name for name, side in sides.items() if side)
    width, height = document.size
    return [
        f"{names}: without effect on init_image, which has {width} x {height}: fit=stretch, crop or pad changes it."
    ]


def read_masked_image(read: Reader, config: HandlerConfig, sizes: ModelSizes, strength: float) -> dict[str, Any]:
    """The init image and its mask, what of them is generated, and the fields that the mask's use needs later."""
    # 1. the fields that say how the mask is used
    mode = read.choice("mask_mode", masks.MODES, "auto")
    padding = read.whole("mask_padding", None, -1, MAX_PADDING)
    grow, inverts = read.whole("mask_grow", 0, 0, MAX_REACH), read.flag("mask_invert")
    values: dict[str, Any] = {
        "mask_blur": read.whole("mask_blur", 0, 0, MAX_REACH),
        "mask_fill": read.choice("mask_fill", FILLS, "original"),
        "patch": read.flag("patch"),
    }
    # 2. the init image, and its mask: a file, or the image's holes
    document, warnings = _read_document(read, config)
    size, fit = document.size, _read_fit(read, config, document.size)
    document = replace(document, image=fit(document.image))
    warnings += _unfitted(read, document, sizes)
    if read.has("mask_image"):
        file = read.image("mask_image", config)
        mask, doubts = masks.read_mask(file.image, mode, "mask_image")
        strongest = max(value for value, pixels in enumerate(mask.histogram()) if pixels)
        if 0 < strongest < FAINT_MASK:
            doubts.append(f"The mask is faint: what it replaces shows through by {100 - strongest * 100 // 255} %.")
        mask = fit(masks.fit_mask(mask, size, "mask_image"))
        warnings += [*file.warnings, *doubts]
    elif (alpha := document.alpha) is not None:
        values["fills_holes"] = True
        if mode != "auto":
            warnings.append("mask_mode has no effect without mask_image: the holes of init_image are the mask.")
        mask = masks.inverted(alpha)
    else:
        raise InvalidRequest(
            "mask_image is missing, and init_image has no transparent part that could be the mask: send a mask."
        )
    mask = masks.refine(masks.inverted(mask) if inverts else mask, grow, values["mask_blur"])
    # 3. the crops
    crops = plan(mask, padding, sizes)
    if not crops:
        warnings.append("The mask selects nothing, so nothing was generated: what should be replaced must be white.")
    elif strength == 1 and values["mask_fill"] != "original":
        # diffusers' inpainting pipelines then start from pure noise (`is_strength_max`)
        warnings.append("mask_fill has no effect at strength 1, where the model starts from noise: lower strength.")
    return values | {
        "init_image": document,
        "mask_image": mask,
        "crops": crops,
        "answer_size": _patch_size(mask) if values["patch"] else document.size,
        "warnings": tuple(warnings),
    }


def _patch_size(mask: Image.Image) -> tuple[int, int]:
    left, top, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    return right - left, bottom - top
