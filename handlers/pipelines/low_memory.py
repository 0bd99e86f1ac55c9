"""Low-memory mode: the denoiser stays on the GPU, the other modules are moved there one at a time for their calls.

These are not diffusers' offload hooks, which move shared modules whenever one pipeline ends while others still run.
Here a module stays until another needs its room. Jobs may overlap, since only one of them runs at a time and none
pauses within a module other than the denoiser.
"""

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from handlers.pipelines.families import DENOISERS, denoiser


class OffloadSlot:
    """Room on the GPU for one module besides the denoiser.

    The module's weights also stay in the CPU's memory, so nothing is copied back when it leaves.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: torch.nn.Module | None = None
        self._on_cpu: list[tuple[torch.Tensor, torch.Tensor]] = []  # its tensors, and their data on the CPU

    def __deepcopy__(self, _: Any) -> "OffloadSlot":
        return self  # the copy of a module needs the same room

    def enter(self, module: torch.nn.Module) -> None:
        """Moves `module` in, and the previous one out."""
        if self._module is module:
            return
        self.empty()
        self._module = module
        self._on_cpu = [(tensor, tensor.data) for tensor in (*module.parameters(), *module.buffers())]
        try:
            for tensor, data in self._on_cpu:
                tensor.data = data.to(self._device)
        except BaseException:  # out of memory half way
            self.empty()
            raise

    def empty(self) -> None:
        for tensor, data in self._on_cpu:
            tensor.data = data.to(tensor.dtype)  # in the dtype that it may have been converted to meanwhile
        self._module, self._on_cpu = None, []


class _OffloadHook(ModelHook):  # type: ignore[misc]
    """Moves a module in before each of its calls. diffusers also runs it before a VAE's encode and decode."""

    def __init__(self, slot: OffloadSlot, device: torch.device) -> None:
        self._slot = slot
        self.execution_device = device  # where pipelines create their tensors

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self._slot.enter(module)
        return args, kwargs


def offload(pipeline: Any, device: torch.device) -> OffloadSlot:
    """Keeps the pipeline's denoiser on `device`, and moves its other modules through one slot there.

    Its VAE then decodes large images in tiles, which needs less memory.
    """
    slot = OffloadSlot(device)
    for name, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and name not in DENOISERS:
            add_hook_to_module(module, _OffloadHook(slot, device))
    denoiser(pipeline).to(device)
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    return slot
