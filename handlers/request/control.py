"""The fields of ControlNets, which guide a generation by images of edges, depths, poses or the like."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.documents import Document, model_image, read_document, resize_to
from handlers.imaging.files import TooManyPixels
from handlers.imaging.fitting import FITS, fitted
from handlers.imaging.regions import Crop
from handlers.request.reader import Reader
from handlers.wire import CONTROL_NUMBERS

MAX_SCALE = 2.0
FIELDS = ("controlnet", "control_image", "control_scale", "control_start", "control_end", "control_fit")


@dataclass(frozen=True)
class Control:
    """How an image guides a generation.

    Attributes:
        net: the ControlNet's name.
        image: RGB, of any size.
        scale: how strongly it guides, from 0.
        start, end: of the share of the steps that it guides, from 0 to 1.
        fit: of FITS, how the image comes to the shape of what is generated.
    """

    net: str
    image: Image.Image
    scale: float
    start: float
    end: float
    fit: str

    def of_crops(self, size: tuple[int, int], crops: Sequence[Crop]) -> list[Image.Image]:
        """What guides each crop of an image of this size, at the crop's own."""
        whole = fitted(self.image, size, self.fit)
        return [resize_to(whole.crop(crop.box), crop.size) for crop in crops]


def read_controls(
    read: Reader, config: HandlerConfig, names: Collection[str], document: Document | None
) -> tuple[tuple[Control, ...], list[str]]:
    """One for each ControlNet that is named; and sentences for the client.

    Args:
        names: the ControlNets that there are.
        document: the init image, which guides where there is no control_image.

    Raises InvalidRequest or TooLarge.
    """
    controls: list[Control] = []
    warnings: list[str] = []
    most = left = config.max_image_pixels  # of all the control images that are sent
    own = cache(partial(_guide, document)) if document else None
    for number in CONTROL_NUMBERS:
        try:
            control, doubts = _read_control(read, number, replace(config, max_image_pixels=left), names, own)
        except TooManyPixels as error:
            if left == most:
                raise
            sentence = f"The control images have more than {most} pixels together: send smaller ones."
            raise TooManyPixels(sentence, most - left + error.pixels) from None
        warnings += doubts
        if control is not None:
            controls.append(control)
            left -= control.image.width * control.image.height * read.has("control_image" + number)
    return tuple(controls), warnings


def _guide(document: Document) -> Image.Image:
    return model_image(document, (0, 0, *document.size), document.size)


def _read_control(
    read: Reader, number: str, config: HandlerConfig, names: Collection[str], own: Callable[[], Image.Image] | None
) -> tuple[Control | None, list[str]]:
    """As `read_controls`, for one of CONTROL_NUMBERS; None without a ControlNet. `own` gives the init image."""
    net_name, image_name, scale_name, start_name, end_name, fit_name = (name + number for name in FIELDS)
    net = read.named(net_name, names)
    scale = read.real(scale_name, 1.0, 0.0, MAX_SCALE)
    start, end = read.real(start_name, 0.0, 0.0, 1.0), read.real(end_name, 1.0, 0.0, 1.0)
    fit = read.choice(fit_name, FITS, "crop")
    if net is None:
        asked = {
            image_name: read.has(image_name), scale_name: scale != 1, start_name: start > 0, end_name: end < 1,
            fit_name: fit != "crop",
        }  # fmt: skip
        sent = [name for name, is_asked in asked.items() if is_asked]
        return None, [f"{', '.join(sent)} without {net_name}: nothing was guided."] if sent else []
    if start >= end:
        raise InvalidRequest(f"{start_name} {start:g} must be below {end_name} {end:g}.")
    if read.has(image_name):
        document, warnings = read_document(read.image(image_name, config), image_name)
        return Control(net, _guide(document), scale, start, end, fit), warnings
    if own is None:
        raise InvalidRequest(f"{image_name} is missing: send the edges, depths or pose that {net_name} needs.")
    return Control(net, own(), scale, start, end, fit), []
