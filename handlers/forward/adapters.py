"""LoRAs in a module's way, while the module itself stays as it is.

peft puts layers of its own around a module's. They go into a twin, which has the same weights, so whoever uses no LoRA
does not even pass by them.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

Weights = tuple[tuple[str, float], ...]  # the names of adapters, each with its weight


class Twin:
    """A copy of a module's structure, around the module's own weights, that takes adapters.

    Attributes:
        module: the copy.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self.module = copy.deepcopy(module, shared)
        self._layers: list[Any] = []
        self._active: Weights | None = None

    def collect(self) -> None:
        """Finds the layers of adapters, after one has been added."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [layer for layer in self.module.modules() if isinstance(layer, BaseTunerLayer)]
        self._active = None

    def has(self, adapter: str) -> bool:
        """Whether the adapter changes this module."""
        return any(adapter in layer._all_available_adapter_names() for layer in self._layers)

    def activate(self, weights: Weights) -> None:
        """Has only these adapters act, each as strongly as its weight says."""
        if weights == self._active:
            return
        names = [name for name, _ in weights]
        for layer in self._layers:
            # past `set_adapter`, which looks at every parameter's gradient: this runs between two forwards
            layer._active_adapter = names
            for name, weight in weights:
                layer.set_scale(name, weight)
        self._active = weights

    def remove(self, adapter: str) -> None:
        """Forgets an adapter, whole or half loaded."""
        self.collect()
        self.activate(())
        for layer in self._layers:
            layer.delete_adapter(adapter)
        getattr(self.module, "peft_config", {}).pop(adapter, None)


@dataclass(frozen=True)
class Adapters:
    """The adapters that a call of a module passes through.

    Attributes:
        shown: them as a person knows them.
    """

    twin: Twin = field(compare=False, repr=False)
    weights: Weights
    shown: str = field(compare=False, default="")

    def __str__(self) -> str:
        return self.shown

    def module(self) -> torch.nn.Module:
        """The module with these adapters, until others are asked for."""
        self.twin.activate(self.weights)
        return self.twin.module
