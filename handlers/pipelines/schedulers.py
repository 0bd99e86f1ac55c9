"""The noise schedulers that fit a model, by diffusers' names."""

from inspect import signature
from typing import Any

from handlers.request.samplers import Sampler


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
