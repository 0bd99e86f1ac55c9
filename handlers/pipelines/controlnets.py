"""ControlNets from a folder, and the stock pipelines that take them."""

import logging
import re
import tempfile
import threading
from inspect import signature
from typing import Any

import diffusers
from accelerate import init_empty_weights
from diffusers import ControlNetModel

from handlers.errors import InvalidRequest
from handlers.pipelines.families import denoiser_name
from handlers.pipelines.named_files import NO_FILES, NamedFile, NamedFiles

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors",)


class ControlNets:
    """Those of a folder; for any thread. The one that was used last stays in memory.

    Args:
        files: in AUTOMATIC1111's layout or in diffusers', alone or in the folder of a repository.
    """

    def __init__(self, files: NamedFiles = NO_FILES) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._last: tuple[tuple[NamedFile, int], Any] | None = None

    def names(self) -> list[str]:
        return [*self._files.all()]

    def guided(self, pipeline: Any, name: str) -> Any:
        """The stock pipeline with a ControlNet that does what `pipeline` does, with the same parts.

        Raises InvalidRequest where this kind of model has none, or the ControlNet is of another kind.
        """
        stock = type(pipeline).__name__
        kind = getattr(diffusers, re.sub(r"(Img2Img|Inpaint)?Pipeline$", r"ControlNet\g<0>", stock), None)
        if kind is None or denoiser_name(pipeline) != "unet":
            raise InvalidRequest("controlnet is not possible with this model: leave it out.")
        parts = {**pipeline.config, **pipeline.components, "controlnet": self._net(name, pipeline.unet)}
        guided = kind(**{name: parts[name] for name in signature(kind.__init__).parameters if name in parts})
        guided.set_progress_bar_config(**pipeline._progress_bar_config)
        return guided

    def _net(self, name: str, unet: Any) -> Any:
        file = self._files.all().get(name)
        if file is None:
            raise InvalidRequest(f"The ControlNet {name} has just been removed: choose another one.")
        with self._lock:
            if self._last is None or self._last[0] != (file, id(unet)):
                self._last = None  # its memory goes first
                self._last = (file, id(unet)), _load(file, unet)
            return self._last[1]


def _load(file: NamedFile, unet: Any) -> Any:
    """The ControlNet of a file for a UNet. Raises InvalidRequest for one of another kind of model."""
    with init_empty_weights():  # of the same shapes as the UNet's first half, as its configuration says
        empty = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            empty.save_config(folder)
            net = ControlNetModel.from_single_file(
                str(file.path), config=folder, torch_dtype=unet.dtype, local_files_only=True
            )
        if any(tensor.is_meta for tensor in net.parameters()):
            raise ValueError("weights are missing")
    except Exception as error:  # a file of any kind may lie there
        logger.warning("The ControlNet %s cannot be loaded: %s", file.path, error)
        raise InvalidRequest(
            f"{file.name} is not a ControlNet for this kind of model, or it is damaged: choose another one."
        ) from None
    return net.to(unet.device).eval()
