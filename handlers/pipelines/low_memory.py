"""Low-memory mode: the UNet stays on the card, the other modules come in one at a time for their call.

Not diffusers' offload hooks: those are taken off, and modules moved, whenever one pipeline ends, under the feet of
those that still run. Here a module stays in until another needs the room; jobs may overlap as they like, since only
one of them runs at a time and none pauses within a module other than the UNet.
"""

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module


class OffloadSlot:
    """Room on the card for one module besides the UNet.

    The weights of a module stay in the CPU's memory meanwhile, so that leaving copies nothing back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._guest: torch.nn.Module | None = None
        self._at_home: list[tuple[torch.Tensor, torch.Tensor]] = []  # its tensors, and their data off the card

    def enter(self, module: torch.nn.Module) -> None:
        """Brings `module` in, and whoever is there out."""
        if self._guest is module:
            return
        self.empty()
        self._guest = module
        self._at_home = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
        try:
            for tensor, data in self._at_home:
                tensor.data = data.to(self._device)
        except BaseException:  # out of memory half way
            self.empty()
            raise

    def empty(self) -> None:
        for tensor, data in self._at_home:
            tensor.data = data.to(tensor.dtype)  # in the format that it may have been turned to meanwhile
        self._guest, self._at_home = None, []


class _OffloadHook(ModelHook):  # type: ignore[misc]
    """Brings a module in before each of its calls. diffusers runs it before a VAE's encode and decode as well."""

    def __init__(self, room: OffloadSlot, device: torch.device) -> None:
        self._room = room
        self.execution_device = device  # where pipelines then make their tensors

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._room.enter(module)
        return args, kwargs


def offload(pipeline: Any, device: torch.device) -> OffloadSlot:
    """Puts the pipeline's UNet on `device` for good, and all its other modules into one guest room.

    Its VAE draws large pictures in tiles from here on, which needs less memory.
    """
    room = OffloadSlot(device)
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and name != "unet":
            add_hook_to_module(module, _OffloadHook(room, device))
    pipeline.unet.to(device)
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    return room
