"""The noise schedulers that fit a model, by diffusers' names, and how they keep from waiting for a GPU."""

import sys
from functools import wraps
from inspect import signature
from typing import Any

import torch

from handlers.request.samplers import Sampler

OVERRIDDEN = ("set_timesteps", "add_noise", "scale_noise", "step")  # methods that a job's own scheduler has instead


def schedulers(pipeline: Any) -> dict[str, Any]:
    """The schedulers that can replace the model's own, by diffusers' names.

    EDMEulerScheduler is left out: diffusers lists it, but it is for models of another parametrisation.
    """
    own = pipeline.scheduler.config
    found = {}
    for kind in sorted(pipeline.scheduler.compatibles, key=lambda kind: kind.__name__):
        # a model that was trained with noise to the very end needs a scheduler that supports it
        fits = not own.get("rescale_betas_zero_snr") or "rescale_betas_zero_snr" in signature(kind.__init__).parameters
        # schedulers whose library is missing are stand-ins that raise when they are created
        if fits and not hasattr(kind, "_backends") and kind.__name__ != "EDMEulerScheduler":
            found[kind.__name__] = kind
    return found


def options(kind: Any) -> frozenset[str]:
    """The options that a scheduler takes."""
    return frozenset(signature(kind.__init__).parameters)


def scheduler(pipeline: Any, sampler: Sampler) -> Any:
    """The scheduler of `sampler`, configured for the noise that the pipeline's model was trained with."""
    # latents are not bounded: clipping them, some schedulers' default, would spoil the image
    config = {"clip_sample": False, **pipeline.scheduler.config}
    return schedulers(pipeline)[sampler.kind].from_config(config, **sampler.options)


def without_waiting(scheduler: Any) -> Any:
    """Keeps a scheduler from waiting for the GPU at each step, where the next forward is to be queued meanwhile.

    A look at a number there waits for all that is queued, and so does a copy from memory that is not pinned. So its
    timesteps stay on the CPU, the factors of `add_noise` are computed there, and noise passes through pinned memory.
    The numbers are the same. UniPC copies its coefficients at each step all the same.

    It also begins with the first timestep, where the pipeline does not say so: a schedule may have two that are equal,
    and diffusers, which then begins with the second, fails at the end for a missing one.
    """
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def on_cpu(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **options | {"device": "cpu"})
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    scheduler.set_timesteps = on_cpu
    if hasattr(scheduler, "add_noise"):
        scheduler.add_noise = _NoiseOffGpu(scheduler.add_noise)
    if hasattr(scheduler, "scale_noise"):
        scale_noise = scheduler.scale_noise  # of flow matching: the same with another order of arguments
        off_gpu = _NoiseOffGpu(lambda samples, noise, timesteps: scale_noise(samples, timesteps, noise))
        scheduler.scale_noise = lambda samples, timesteps, noise: off_gpu(samples, noise, timesteps)
    module = vars(sys.modules[type(scheduler).__module__])
    if "randn_tensor" in module:
        module["randn_tensor"] = draw
    return scheduler


class _NoiseOffGpu:
    """A scheduler's `add_noise` for one image, whose tables stay on the CPU: a sum of both, each times a number."""

    def __init__(self, add_noise: Any) -> None:
        self._add_noise = add_noise

    def __call__(self, samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if samples.device.type == "cpu":
            noisy: torch.Tensor = self._add_noise(samples, noise, timesteps)
            return noisy
        one, zero = torch.ones(1, dtype=samples.dtype), torch.zeros(1, dtype=samples.dtype)
        # of no dimension: such a tensor goes from the CPU with the kernel
        of_samples: torch.Tensor = self._add_noise(one, zero, timesteps).reshape(())
        of_noise: torch.Tensor = self._add_noise(zero, one, timesteps).reshape(())
        return of_samples * samples + of_noise * noise


def draw(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None) -> torch.Tensor:
    """diffusers' `randn_tensor`, with its arguments and its numbers, which go to a GPU through pinned memory.

    Requests have their generators on the CPU, since a seed starts from the same noise on every device.
    """
    from diffusers.utils.torch_utils import randn_tensor

    device = torch.device(device or "cpu")
    pins = device.type == "cuda" and generator is not None
    noise: torch.Tensor = randn_tensor(shape, generator, torch.device("cpu") if pins else device, dtype, layout)
    return noise.pin_memory().to(device, non_blocking=True) if pins else noise
