"""Which calls are alike: the one answer for merging, CUDA graphs and OpenVINO."""

import hashlib
import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from handlers.forward.adapters import Adapters
from handlers.forward.calls import DecodeCall, DenoiserCall, UpscaleCall

# VAEs that decode each image by itself and use no generator, so calls merge whatever generators they bring
DETERMINISTIC = ("AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderTiny")


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
class ListForm:
    """A list of tensors, one for each row, each of a size of its own.

    Attributes:
        octave: of latents, the binary logarithm of a row's pixels, rounded; None for texts. All rows are padded to the
            longest one, so those that share a call are of about one size.
    """

    dtype: torch.dtype
    octave: int | None = None

    @classmethod
    def of(cls, rows: list[torch.Tensor], area: int = 0) -> "ListForm":
        return cls(rows[0].dtype, round(math.log2(area / len(rows))) if area else None)

    def __str__(self) -> str:
        about = "" if self.octave is None else f" of about {2**self.octave} latent pixels"
        return f"rows of {str(self.dtype).removeprefix('torch.')}{about}"


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


# of tensors that are one for all rows: read when a job begins, since on a GPU that waits
_digests = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class Content:
    """A tensor that is one for all rows, such as the positions of an image's tokens, by its content."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    digest: str

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Content":
        if tensor not in _digests:
            numbers = tensor.cpu().reshape(-1).view(torch.uint8).numpy()
            _digests[tensor] = hashlib.sha256(numbers.tobytes()).hexdigest()[:16]
        return cls(tensor.dtype, tuple(tensor.shape), _digests[tensor])

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape} with the digest {self.digest}"


def _form(value: Any, call: DenoiserCall | None = None) -> Hashable:
    """The form of an argument of `call`, or of another one without tensors."""
    if isinstance(value, torch.Tensor):
        return TensorForm.of(value) if call is not None and call.is_rows(value) else Content.of(value)
    if isinstance(value, list) and call is not None and call.is_rows(value):
        return ListForm.of(value)
    if isinstance(value, Mapping):
        return tuple((name, _form(item, call)) for name, item in sorted(value.items()))
    if call is not None and call.is_stack(value):
        return tuple((index, _form(item, call)) for index, item in enumerate(value))
    if _is_plain(value):
        return Value(type(value).__name__, str(value) if isinstance(value, (list, tuple)) else value)
    return Identity(type(value).__name__, id(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _leaves(form: Hashable) -> Iterator[Hashable]:
    if isinstance(form, tuple):
        for _, item in form:
            yield from _leaves(item)
    else:
        yield form


def _sizeless(form: Any) -> Any:
    if isinstance(form, tuple):
        return tuple((name, _sizeless(item)) for name, item in form)
    is_tensor = isinstance(form, (TensorForm, Content))
    return TensorForm(form.dtype, (None,) * len(form.shape)) if is_tensor else form


@dataclass(frozen=True)
class CallSignature:
    """What calls must have in common to run as one. Every argument takes part: nothing is dropped.

    Attributes:
        module: the UNet or transformer, VAE or upscaler.
        sample: the latents.
        timestep: its form; None for a VAE. Rows may have timesteps of their own.
        arguments: the others, by name; what is one for all rows by its value.
        alone: set for a call that no other can join.
        adapters: what it passes through besides the denoiser, with the weights of each.
    """

    module: Identity
    sample: TensorForm | ListForm
    timestep: Hashable
    arguments: tuple[tuple[str, Hashable], ...]
    alone: int | None = None
    adapters: Adapters | None = None

    @classmethod
    def of(cls, call: DenoiserCall | DecodeCall | UpscaleCall) -> "CallSignature":
        arguments: dict[str, Any]
        if isinstance(call, UpscaleCall):
            joins, module, timestep, arguments = False, call.model, None, {}
        elif isinstance(call, DecodeCall):
            options = {name: value for name, value in call.kwargs.items() if name != "generator" and value is not None}
            joins = type(call.vae).__name__ in DETERMINISTIC and options.keys() <= {"return_dict"}
            module, timestep, arguments = call.vae, None, options
        else:
            joins, given = True, call.timestep
            timestep = str(given.dtype) if isinstance(given, torch.Tensor) else type(given).__name__
            module, arguments = call.module, dict(call.kwargs)
        sample, denoiser_call = call.sample, call if isinstance(call, DenoiserCall) else None
        return cls(
            module=Identity(type(module).__name__, id(module)),
            sample=ListForm.of(sample, call.area) if isinstance(sample, list) else TensorForm.of(sample),
            timestep=timestep,
            arguments=tuple((name, _form(value, denoiser_call)) for name, value in sorted(arguments.items())),
            alone=None if joins else id(call),
            adapters=denoiser_call.adapters if denoiser_call else None,
        )

    @property
    def has_row_tensors_alone(self) -> bool:
        """Whether each tensor of its calls has a row for each row of the latents."""
        leaves = (self.sample, *_leaves(self.arguments))
        return not any(isinstance(leaf, (ListForm, Content)) for leaf in leaves)

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
            found.append("one of them runs alone")
        return found


def _shown(form: Hashable) -> str:
    if isinstance(form, tuple):
        return "{" + ", ".join(f"{name}: {_shown(item)}" for name, item in form) + "}"
    return "absent" if form is None else str(form)
