"""The noise schedulers that fit a model, by diffusers' names."""

from inspect import signature
from typing import Any


def schedulers(pipeline: Any) -> dict[str, Any]:
    """The schedulers that can take the place of the model's own, by diffusers' names.

    Without EDMEulerScheduler, which diffusers counts among them and which is for models of another parametrisation.
    """
    own = pipeline.scheduler.config
    found = {}
    for kind in sorted(pipeline.scheduler.compatibles, key=lambda kind: kind.__name__):
        # a model that was trained with noise to the very end needs a scheduler that knows of it
        fits = not own.get("rescale_betas_zero_snr") or "rescale_betas_zero_snr" in signature(kind.__init__).parameters
        # those whose library is missing are stand-ins that raise when they are made
        if fits and not hasattr(kind, "_backends") and kind.__name__ != "EDMEulerScheduler":
            found[kind.__name__] = kind
    return found


def scheduler(pipeline: Any, name: str) -> Any:
    """The scheduler `name` for the noise that the pipeline's model has learnt."""
    # latents are not bounded: what clips them by default would spoil the picture
    return schedulers(pipeline)[name].from_config({"clip_sample": False, **pipeline.scheduler.config})
