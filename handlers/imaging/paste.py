"""Generated crops back into their document, or as a patch of their own."""

from collections.abc import Iterable

from PIL import Image, ImageChops

from handlers.imaging.colours import from_srgb
from handlers.imaging.documents import Document, resize_to
from handlers.imaging.masks import inverted
from handlers.imaging.regions import Box, Crop

Generated = Iterable[tuple[Crop, Image.Image]]  # each crop with what the model made of it: RGB in sRGB, of its size


def paste(document: Document, mask: Image.Image, generated: Generated, behind: bool) -> Image.Image:
    """The document with the generated crops, where the mask is white: its very pixels where the mask is black.

    What is generated is opaque.

    Args:
        behind: whether they lie behind the document, whose holes are the mask.
    """
    result = document.image.copy()
    for crop, image in generated:
        patch = _in_region(document, crop, image)
        own_mask, corner = mask.crop(crop.region), crop.region[:2]
        if behind:
            # one composite, so a soft edge is blended once: by the document's alpha, or by the mask if that takes more
            over = result.crop(crop.region)
            over.putalpha(ImageChops.darker(over.getchannel("A"), inverted(own_mask)))
            result.paste(Image.alpha_composite(patch.convert("RGBA"), over), corner, _above_black(own_mask))
        elif result.mode == "RGBA":
            patch.putalpha(own_mask)
            result.alpha_composite(patch, corner)
        else:
            result.paste(patch, corner, own_mask)
    return result


def patch_of(document: Document, mask: Image.Image, generated: Generated, behind: bool) -> tuple[Image.Image, Box]:
    """What was generated alone, RGBA, and its place in the document. Laid over the document, it is what `paste` gives.

    Its alpha is the mask; where it fills holes (`behind`), it has the document's soft edges and is opaque. A mask that
    selects nothing gives one transparent pixel.
    """
    box = mask.getbbox() or (0, 0, 1, 1)
    if behind:
        result = paste(document, mask, generated, behind).crop(box)
        result.putalpha(_above_black(mask.crop(box)))
        return result, box
    result = Image.new("RGBA", (box[2] - box[0], box[3] - box[1]))
    for crop, image in generated:
        patch = _in_region(document, crop, image)
        patch.putalpha(mask.crop(crop.region))
        result.paste(patch, (crop.region[0] - box[0], crop.region[1] - box[1]))
    return result, box


def regenerated(document: Document, image: Image.Image) -> Image.Image:
    """A whole image of the model's in the document's size, colours and alpha."""
    result = from_srgb(resize_to(image, document.size), document.profile)
    if (alpha := document.alpha) is not None:
        result.putalpha(alpha)
    return result


def _in_region(document: Document, crop: Crop, image: Image.Image) -> Image.Image:
    """A copy of the generated crop's part that may replace something, at the document's scale and in its colours."""
    left, top, right, bottom = crop.box
    scaled = resize_to(image, (right - left, bottom - top))
    region = (crop.region[0] - left, crop.region[1] - top, crop.region[2] - left, crop.region[3] - top)
    return from_srgb(scaled.crop(region), document.profile)


def _above_black(mask: Image.Image) -> Image.Image:
    return mask.point([0] + [255] * 255)
