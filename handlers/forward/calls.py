"""A call of a denoiser, a VAE or an upscaler that a job is paused at."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch

from handlers.forward.adapters import Adapters

PACKED = 2 * 2  # latent pixels that a token of packed latents holds


class Call:
    """One paused call.

    `sample` is (rows, channels, latent height, latent width). Transformers also take packed latents, (rows, tokens,
    channels), and lists of rows of (channels, 1, latent height, latent width), each with a size of its own.
    """

    sample: Any
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return len(self.sample)

    @property
    def area(self) -> int:
        """The latent pixels of all rows together."""
        if isinstance(self.sample, list):
            return sum(row.shape[-1] * row.shape[-2] for row in self.sample)
        if self.sample.dim() == 3:
            return self.rows * int(self.sample.shape[1]) * PACKED
        return self.rows * int(self.sample.shape[-1] * self.sample.shape[-2])

    def run(self) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class DenoiserCall(Call):
    """Of a UNet or a transformer, through `adapters` if there are any.

    Attributes:
        kwargs: the arguments besides the latents and the timestep, by name.
        timestep_name: the timestep's.
    """

    module: Any
    sample: Any
    timestep: Any
    kwargs: Mapping[str, Any]
    adapters: Adapters | None = None
    timestep_name: str = "timestep"
    predicts: ClassVar[bool] = True  # whether its output is what a step is made with

    @classmethod
    def of(
        cls, module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], adapters: Adapters | None = None
    ) -> "DenoiserCall":
        """The call `module(*args, **kwargs)`, whose first argument are the latents, whatever its name.

        The result is a tuple in any case: a family's pipelines ask for it in unlike ways, and take its first item.
        """
        defaults = _defaults(module.__class__)
        names = [*defaults]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        # a pipeline may leave out what another one passes as None, which means the same
        given = {name: value for name, value in given.items() if value is not None or defaults.get(name) is not None}
        if "return_dict" in names:
            given["return_dict"] = False
        timestep_name = "timestep" if "timestep" in given else "t"
        sample, timestep = given.pop(names[0]), given.pop(timestep_name)
        return cls(module, sample, timestep, given, adapters, timestep_name)

    def run(self) -> Any:
        # off the CPU the denoiser would copy the timestep to the sample's device, and wait for it
        timestep = self.timestep if self.device.type == "cpu" else self.with_timesteps().timestep
        module = self.module if self.adapters is None else self.adapters.module()
        return module(self.sample, **{self.timestep_name: timestep}, **self.kwargs)

    @property
    def device(self) -> torch.device:
        device: torch.device = (self.sample[0] if isinstance(self.sample, list) else self.sample).device
        return device

    def with_timesteps(self) -> "DenoiserCall":
        """The call with a timestep for each row, (rows,), on the sample's device."""
        timestep = torch.as_tensor(self.timestep)
        if timestep.device == self.device:
            return replace(self, timestep=timestep.expand(self.rows))
        # filled in there, since a job's rows have one timestep: a copy would wait for the GPU
        first = timestep.flatten()[0].item()
        filled = torch.full((self.rows,), first, dtype=timestep.dtype, device=self.device)
        return replace(self, timestep=filled)

    def is_rows(self, value: Any) -> bool:
        """Whether an argument has an item for each row; otherwise it is one for all of them."""
        if isinstance(value, torch.Tensor):
            return value.dim() > 0 and len(value) == self.rows
        return isinstance(value, list) and isinstance(self.sample, list) and len(value) == self.rows

    def is_stack(self, value: Any) -> bool:
        """Whether an argument is several tensors that each have the rows, as what a ControlNet adds to a UNet's."""
        is_some = isinstance(value, (list, tuple)) and bool(value) and not isinstance(self.sample, list)
        return is_some and all(isinstance(item, torch.Tensor) and self.is_rows(item) for item in value)

    @property
    def has_stack(self) -> bool:
        return any(map(self.is_stack, self.kwargs.values()))

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors, always in the same order."""
        for value in (self.sample, self.timestep, self.kwargs):
            yield from self._tensors_of(value)

    def _tensors_of(self, value: Any) -> Iterator[torch.Tensor]:
        if isinstance(value, Mapping):
            for name in sorted(value):
                yield from self._tensors_of(value[name])
        elif self.is_stack(value):
            yield from value
        elif isinstance(value, torch.Tensor):
            yield value

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> "DenoiserCall":
        """The call with other tensors, given in the order of `tensors`."""
        given = iter(tensors)

        def put(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: put(value[name]) for name in sorted(value)}
            if self.is_stack(value):
                return [put(item) for item in value]
            return next(given) if isinstance(value, torch.Tensor) else value

        return replace(self, sample=put(self.sample), timestep=put(self.timestep), kwargs=put(self.kwargs))


@dataclass(frozen=True)
class ControlCall(DenoiserCall):
    """Of a ControlNet, whose output is a stack of tensors, and one more tensor, for the UNet's next call."""

    predicts: ClassVar[bool] = False


@lru_cache
def _defaults(kind: type) -> dict[str, Any]:
    """A module's arguments with their defaults, in their order."""
    parameters = list(inspect.signature(kind.forward).parameters.values())[1:]  # type: ignore[attr-defined]
    return {parameter.name: parameter.default for parameter in parameters}


@dataclass(frozen=True)
class DecodeCall(Call):
    """Of a VAE's `decode`."""

    vae: Any
    sample: Any
    kwargs: Mapping[str, Any]

    def run(self) -> Any:
        return self.vae.decode(self.sample, **self.kwargs)


@dataclass(frozen=True)
class UpscaleCall(Call):
    """Of a model that enlarges a tile of an image; `sample` is (1, 3, height, width), from 0 to 1."""

    model: Any
    sample: Any

    def run(self) -> Any:
        return (self.model(self.sample),)
