"""ControlNets from a folder, and the stock pipelines that take them."""

import logging
import re
import tempfile
from collections.abc import Sequence
from inspect import signature
from typing import Any
from weakref import WeakValueDictionary

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import ControlNetModel

from handlers.errors import InvalidRequest
from handlers.pipelines.families import denoiser_name
from handlers.pipelines.named_files import NO_FILES, NamedFile, NamedFiles
from handlers.pipelines.noise import use_variations

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors",)


class ControlNets:
    """Those of a folder. `load` is for the engine's thread, the others for any. What was used last stays.

    Args:
        files: in AUTOMATIC1111's layout or in diffusers', alone or in the folder of a repository.
    """

    def __init__(self, files: NamedFiles = NO_FILES) -> None:
        self._files = files
        self._last: list[Any] = []
        # of jobs that still run, so that none is in memory twice
        self._used: WeakValueDictionary[tuple[NamedFile, int], Any] = WeakValueDictionary()

    def names(self) -> list[str]:
        return [*self._files.all()]

    def file(self, name: str) -> NamedFile:
        """Of one of `names`. Raises InvalidRequest if it has gone meanwhile."""
        file = self._files.all().get(name)
        if file is None:
            raise InvalidRequest(f"The ControlNet {name} has just been removed: choose another one.")
        return file

    def load(self, files: Sequence[NamedFile], pipeline: Any) -> list[Any]:
        """The ControlNets of files, for a pipeline's UNet. Raises InvalidRequest for one of another kind of model."""
        keys = [(file, id(pipeline.unet)) for file in files]
        nets = [self._used.get(key) for key in keys]
        if None in nets:
            self._last = []  # the memory of those that are not used goes first
        for i, key in enumerate(keys):
            if nets[i] is None:
                nets[i] = self._used.get(key) or _load(files[i], pipeline)  # one may guide twice
                self._used[key] = nets[i]
        self._last = nets
        return nets


def guided(pipeline: Any) -> Any:
    """The stock pipeline that does what `pipeline` does by a ControlNet too, with the same parts and still without it.

    Raises InvalidRequest where this kind of model has none.
    """
    stock = type(pipeline).__name__
    kind = getattr(diffusers, re.sub(r"(Img2Img|Inpaint)?Pipeline$", r"ControlNet\g<0>", stock), None)
    if kind is None or denoiser_name(pipeline) != "unet":
        raise InvalidRequest("controlnet is not possible with this model: leave it out.")
    parts = {**pipeline.config, **pipeline.components, "controlnet": None}
    made = kind(**{name: parts[name] for name in signature(kind.__init__).parameters if name in parts})
    made.set_progress_bar_config(**pipeline._progress_bar_config)
    use_variations(made)
    return made


def _load(file: NamedFile, pipeline: Any) -> Any:
    unet = pipeline.unet
    with init_empty_weights():  # of the same shapes as the UNet's first half, as its configuration says
        empty = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    empty.register_to_config(in_channels=pipeline.vae.config.latent_channels)  # inpainting UNets have more
    try:
        with tempfile.TemporaryDirectory() as folder:
            empty.save_config(folder)
            net = ControlNetModel.from_single_file(
                str(file.path), config=folder, torch_dtype=unet.dtype, local_files_only=True
            )
        if any(tensor.is_meta for tensor in net.parameters()):
            raise ValueError("weights are missing")
        return net.to(unet.device).eval()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a file of any kind may lie there
        logger.warning("The ControlNet %s cannot be loaded: %s", file.path, error)
        raise InvalidRequest(
            f"{file.name} is not a ControlNet for this kind of model, or it is damaged: choose another one."
        ) from None
