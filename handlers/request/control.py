"""The fields of a ControlNet, which guides a generation by an image of edges, depths, poses or the like."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.documents import Document, model_image, read_document, resize_to
from handlers.imaging.fitting import FITS, fitted
from handlers.imaging.regions import Crop
from handlers.request.reader import Reader

MAX_SCALE = 2.0


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

    def fitted(self, size: tuple[int, int]) -> "Control":
        """With its image at the size of the one that it guides."""
        return replace(self, image=fitted(self.image, size, self.fit))

    def of_crop(self, crop: Crop) -> Image.Image:
        """What guides a crop of the image, at the crop's size, once it is `fitted`."""
        return resize_to(self.image.crop(crop.box), crop.size)


def read_control(
    read: Reader, config: HandlerConfig, names: Collection[str], document: Document | None
) -> tuple[Control | None, list[str]]:
    """None without a ControlNet; and sentences for the client.

    Args:
        names: the ControlNets that there are.
        document: the init image, which guides where there is no control_image.

    Raises InvalidRequest or TooLarge.
    """
    net = read.named("controlnet", names)
    scale = read.real("control_scale", 1.0, 0.0, MAX_SCALE)
    start, end = read.real("control_start", 0.0, 0.0, 1.0), read.real("control_end", 1.0, 0.0, 1.0)
    fit = read.choice("control_fit", FITS, "crop")
    if net is None:
        asked = {
            "control_image": read.has("control_image"), "control_scale": scale != 1, "control_start": start > 0,
            "control_end": end < 1, "control_fit": fit != "crop",
        }  # fmt: skip
        sent = [name for name, is_asked in asked.items() if is_asked]
        return None, [f"{', '.join(sent)} without controlnet: nothing guided the generation."] if sent else []
    if start >= end:
        raise InvalidRequest(f"control_start {start:g} must be below control_end {end:g}.")
    warnings: list[str] = []
    if read.has("control_image"):
        document, warnings = read_document(read.image("control_image", config), "control_image")
    if document is None:
        raise InvalidRequest("control_image is missing: send the edges, depths or pose that controlnet needs.")
    image = model_image(document, (0, 0, *document.size), document.size)
    return Control(net, image, scale, start, end, fit), warnings
