"""A call of a UNet, a VAE or an upscaler that a job is paused at."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from handlers.forward.adapters import Adapters


class Call:
    """One paused call; `sample` is (rows, channels, latent height, latent width)."""

    sample: Any
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return int(self.sample.shape[0])

    @property
    def area(self) -> int:
        """The latent pixels of a row."""
        return int(self.sample.shape[-1] * self.sample.shape[-2])

    def run(self) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class UNetCall(Call):
    """Of a UNet, through `adapters` if there are any."""

    unet: Any
    sample: Any
    timestep: Any
    kwargs: Mapping[str, Any]
    adapters: Adapters | None = None

    def run(self) -> Any:
        # off the CPU the UNet would copy the timestep to the sample's device, and wait for it
        timestep = self.timestep if self.sample.device.type == "cpu" else self.with_timesteps().timestep
        unet = self.unet if self.adapters is None else self.adapters.module()
        return unet(self.sample, timestep, **self.kwargs)

    def with_timesteps(self) -> "UNetCall":
        """The call with a timestep for each row, (rows,), on the sample's device."""
        timestep = torch.as_tensor(self.timestep)
        if timestep.device == self.sample.device:
            return replace(self, timestep=timestep.expand(self.rows))
        # filled in there: a copy would wait for the GPU
        filled = torch.full((self.rows,), timestep.item(), dtype=timestep.dtype, device=self.sample.device)
        return replace(self, timestep=filled)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors, always in the same order."""
        for value in (self.sample, self.timestep, self.kwargs):
            yield from _tensors_of(value)

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> "UNetCall":
        """The call with other tensors, given in the order of `tensors`."""
        given = iter(tensors)

        def put(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: put(value[name]) for name in sorted(value)}
            return next(given) if isinstance(value, torch.Tensor) else value

        return replace(self, sample=put(self.sample), timestep=put(self.timestep), kwargs=put(self.kwargs))


def _tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, Mapping):
        for name in sorted(value):
            yield from _tensors_of(value[name])
    elif isinstance(value, torch.Tensor):
        yield value


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
