"""A model's own steps, guidance scale and size, for requests that do not give them."""

import json
from pathlib import Path
from typing import Any

from handlers.errors import ModelError
from handlers.request.fields import ModelDefaults

DEFAULTS_FILE = "generation_config.json"  # beside model_index.json; the name that transformers gave such a file


def model_defaults(path: Path, pipeline: Any) -> ModelDefaults:
    """The model's own steps, guidance scale and sizes, from its generation_config.json, otherwise from its parts.

    Raises ModelError for a faulty file.
    """
    own: dict[str, Any] = _distilled(pipeline)
    file = path / DEFAULTS_FILE
    contract = ModelDefaults()
    sample_size = pipeline.unet.config.sample_size or 64
    latent_height, latent_width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    try:
        if file.is_file():
            own |= json.loads(file.read_text(encoding="utf-8"))
        return ModelDefaults(
            num_inference_steps=int(own.get("num_inference_steps", contract.num_inference_steps)),
            guidance_scale=float(own.get("guidance_scale", contract.guidance_scale)),
            width=latent_width * pipeline.vae_scale_factor,
            height=latent_height * pipeline.vae_scale_factor,
            drawn_size=own.get("drawn_size"),
            scheduler=type(pipeline.scheduler).__name__,
            zero_snr=bool(pipeline.scheduler.config.get("rescale_betas_zero_snr")),
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file} must give numbers for num_inference_steps and guidance_scale: {error}") from None


def _distilled(pipeline: Any) -> dict[str, Any]:
    """The defaults of a few-step model, recognised by its parts; empty for any other."""
    scheduler, settings = type(pipeline.scheduler).__name__, pipeline.scheduler.config
    if pipeline.unet.config.time_cond_proj_dim:  # latent consistency: the guidance is an input of the UNet
        return {"num_inference_steps": 4, "guidance_scale": 8.5}
    if scheduler in ("LCMScheduler", "TCDScheduler"):
        return {"num_inference_steps": 4, "guidance_scale": 1.0}
    if scheduler.startswith("Euler") and settings.get("timestep_spacing") == "trailing":  # the Turbo models
        return {"num_inference_steps": 4, "guidance_scale": 0.0}
    return {}
