"""A module's weights, which leave memory while another engine has a copy of its own."""

import hashlib
from collections.abc import Callable
from functools import cached_property

import torch

SAMPLES = 16  # values of each weight that tell two models apart
HALF_STEP = 2**-24  # float16's smallest: a model published in bfloat16 has values between two of its


class Weights:
    """The weights of a module.

    Args:
        load: loads the module once more, from its model's files; None if the weights always stay in memory.
    """

    def __init__(self, module: torch.nn.Module, load: Callable[[], torch.nn.Module] | None = None) -> None:
        self.module = module
        self._load = load
        self._is_released = False
        self._is_used = False

    @property
    def kind(self) -> str:
        return type(self.module).__name__

    @cached_property
    def identity(self) -> tuple[str, bool]:
        """A name for them, by SAMPLES values of each weight, and whether 16 bits are enough for those values."""
        is_half = True
        about = f"{type(self.module).__name__} {getattr(self.module, 'config', '')}"
        digest = hashlib.sha256(about.encode())
        for name, tensor in self.module.state_dict().items():
            values = tensor.flatten()
            some = values[:: max(1, len(values) // SAMPLES)].to(torch.float32)
            is_half = is_half and torch.allclose(some, some.half().float(), rtol=0, atol=HALF_STEP)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest(), is_half

    def release(self) -> None:
        """Frees their memory, unless torch uses them. Shapes, dtypes and devices stay as they are."""
        _ = self.identity  # which has to be read before
        if self._load is not None and not self._is_used:
            for tensor in self._tensors():
                tensor.data = tensor.new_zeros(()).expand(tensor.shape)
            self._is_released = True

    def restore(self) -> None:
        """Has them in memory, until the next release."""
        if self._is_released and self._load is not None:
            loaded = self._load()
            for tensor, again in zip(self._tensors(), Weights(loaded)._tensors(), strict=True):
                tensor.data = again.data
            self._is_released = False

    def use(self) -> None:
        """Has them in memory from now on, for a module that torch runs."""
        self.restore()
        self._is_used = True

    def _tensors(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]
