"""Which calls are alike: the one answer for merging, CUDA graphs and OpenVINO."""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from handlers.forward.adapters import Adapters
from handlers.forward.calls import DecodeCall, UNetCall, UpscaleCall

# VAEs that decode each image by itself and use no generator, so calls merge whatever generators they bring
DETERMINISTIC = ("AutoencoderKL", "AutoencoderTiny")


@dataclass(frozen=True)
class TensorForm:
    """A tensor's dtype and shape; a size that does not matter is None, as the number of rows always is."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "TensorForm":
        return cls(tensor.dtype, (None, *tensor.shape[1:]) if tensor.dim() else ())

    def __str__(self) -> str:
        sizes = ", ".join(
            "rows" if i == 0 else "any" if size is None else str(size) for i, size in enumerate(self.shape)
        )
        return f"{str(self.dtype).removeprefix('torch.')} ({sizes})"


@dataclass(frozen=True)
class Value:
    """A plain value with its type, since True equals 1."""

    kind: str
    value: Hashable

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True)
class Identity:
    """An object that is alike to itself alone. Its id may be another object's once it is gone."""

    kind: str
    id: int

    def __str__(self) -> str:
        return f"{self.kind} at {self.id:#x}"


def _form(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return TensorForm.of(value)
    if isinstance(value, Mapping):
        return tuple((name, _form(item)) for name, item in sorted(value.items()))
    if value is None or isinstance(value, (bool, int, float, str)):
        return Value(type(value).__name__, value)
    return Identity(type(value).__name__, id(value))


def _leaves(form: Hashable) -> Iterator[Hashable]:
    if isinstance(form, tuple):
        for _, item in form:
            yield from _leaves(item)
    else:
        yield form


def _sizeless(form: Any) -> Any:
    if isinstance(form, tuple):
        return tuple((name, _sizeless(item)) for name, item in form)
    return replace(form, shape=(None,) * len(form.shape)) if isinstance(form, TensorForm) else form


@dataclass(frozen=True)
class CallSignature:
    """What calls must have in common to run as one. Every argument takes part: nothing is dropped.

    Attributes:
        module: the UNet, VAE or upscaler.
        sample: the latents.
        timestep: its form; None for a VAE. Rows may have timesteps of their own.
        arguments: the others, by name.
        alone: set for a call that no other can join, since an argument has no row for each row of the sample.
        adapters: what it passes through besides the UNet, with the weights of each.
    """

    module: Identity
    sample: TensorForm
    timestep: Hashable
    arguments: tuple[tuple[str, Hashable], ...]
    alone: int | None = None
    adapters: Adapters | None = None

    @classmethod
    def of(cls, call: UNetCall | DecodeCall | UpscaleCall) -> "CallSignature":
        arguments: dict[str, Any]
        if isinstance(call, UpscaleCall):
            joins, module, timestep, arguments = False, call.model, None, {}
        elif isinstance(call, DecodeCall):
            options = {name: value for name, value in call.kwargs.items() if name != "generator" and value is not None}
            joins = type(call.vae).__name__ in DETERMINISTIC and options.keys() <= {"return_dict"}
            module, timestep, arguments = call.vae, None, options
        else:
            joins = all(
                tensor.dim() > 0 and tensor.shape[0] == call.rows
                for value in call.kwargs.values()
                for tensor in (value.values() if isinstance(value, Mapping) else [value])
                if isinstance(tensor, torch.Tensor)
            )
            given = call.timestep
            timestep = str(given.dtype) if isinstance(given, torch.Tensor) else type(given).__name__
            module, arguments = call.unet, dict(call.kwargs)
        return cls(
            module=Identity(type(module).__name__, id(module)),
            sample=TensorForm.of(call.sample),
            timestep=timestep,
            arguments=tuple((name, _form(value)) for name, value in sorted(arguments.items())),
            alone=None if joins else id(call),
            adapters=call.adapters if isinstance(call, UNetCall) else None,
        )

    @property
    def is_by_value(self) -> bool:
        """Whether it may be remembered longer than the call's arguments live."""
        return not any(isinstance(leaf, Identity) for leaf in _leaves(self.arguments))

    def without_sizes(self) -> "CallSignature":
        """What two calls have in common whose tensors differ in their sizes alone."""
        sample, arguments = _sizeless(self.sample), _sizeless(self.arguments)
        return replace(self, sample=sample, arguments=arguments, alone=None)

    def differences(self, other: "CallSignature") -> list[str]:
        """Why two calls cannot run as one, for the log: the fields that differ, and how."""
        found = [
            f"{field.name}: {_shown(getattr(self, field.name))} against {_shown(getattr(other, field.name))}"
            for field in fields(self)
            if field.name not in ("arguments", "alone") and getattr(self, field.name) != getattr(other, field.name)
        ]
        mine, others = dict(self.arguments), dict(other.arguments)
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) != others.get(name):
                found.append(f"{name}: {_shown(mine.get(name))} against {_shown(others.get(name))}")
        if self.alone != other.alone:
            found.append("an argument has no row for each row of the sample")
        return found


def _shown(form: Hashable) -> str:
    if isinstance(form, tuple):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in form) + "}"
    return "absent" if form is None else str(form)
