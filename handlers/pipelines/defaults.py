"""A model's own steps, guidance scale and size, for requests that do not give them."""

import json
from inspect import signature
from pathlib import Path
from typing import Any

from handlers.errors import ModelError
from handlers.pipelines.families import denoiser_name, has_true_guidance, size_multiple
from handlers.request.fields import ModelDefaults

TRANSFORMER_SIDE = 1024  # pixels
DEFAULTS_FILE = "generation_config.json"  # beside model_index.json; the name that transformers gave such a file


def model_defaults(path: Path, pipeline: Any) -> ModelDefaults:
    """The model's own steps, guidance scale and sizes, from its generation_config.json, otherwise from its parts.

    Raises ModelError for a faulty file.
    """
    own: dict[str, Any] = _of_parts(pipeline)
    file = path / DEFAULTS_FILE
    contract = ModelDefaults()
    try:
        if file.is_file():
            own |= json.loads(file.read_text(encoding="utf-8"))
        return ModelDefaults(
            num_inference_steps=int(own.get("num_inference_steps", contract.num_inference_steps)),
            guidance_scale=float(own.get("guidance_scale", contract.guidance_scale)),
            width=int(own["width"]),
            height=int(own["height"]),
            drawn_size=own.get("drawn_size"),
            scheduler=type(pipeline.scheduler).__name__,
            zero_snr=bool(pipeline.scheduler.config.get("rescale_betas_zero_snr")),
            size_multiple=size_multiple(pipeline),
        )
    except (ValueError, TypeError) as error:
        raise ModelError(f"{file} must give numbers for num_inference_steps and guidance_scale: {error}") from None


def _of_parts(pipeline: Any) -> dict[str, Any]:
    return _of_unet(pipeline) if denoiser_name(pipeline) == "unet" else _of_transformer(pipeline)


def _of_unet(pipeline: Any) -> dict[str, Any]:
    sample_size = pipeline.unet.config.sample_size or 64
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    scale = pipeline.vae_scale_factor
    return {"width": width * scale, "height": height * scale} | _distilled(pipeline)


def _of_transformer(pipeline: Any) -> dict[str, Any]:
    """What the pipeline's own call would use; a distilled model may say more in its generation_config.json."""
    parameters = signature(pipeline.__call__).parameters
    guidance = "true_cfg_scale" if has_true_guidance(pipeline) else "guidance_scale"
    # of those without a size of their own, the one that their pipelines and models have in common
    side = getattr(pipeline, "default_sample_size", None)
    side = side * pipeline.vae_scale_factor if side else TRANSFORMER_SIDE
    return {
        "num_inference_steps": parameters["num_inference_steps"].default,
        "guidance_scale": parameters[guidance].default,
        "width": side,
        "height": side,
    } | _few_steps(pipeline)


def _few_steps(pipeline: Any) -> dict[str, Any]:
    """The defaults of a distilled transformer, recognised by its schedule; empty for any other."""
    shift, is_dynamic = (pipeline.scheduler.config.get(name) for name in ("shift", "use_dynamic_shifting"))
    if has_true_guidance(pipeline) and not is_dynamic:  # FLUX.1 schnell: timesteps that no size of image moves
        return {"num_inference_steps": 4, "guidance_scale": 0.0}
    if type(pipeline).__name__.startswith("ZImage") and shift == 3:  # Turbo; the base model has 6
        return {"num_inference_steps": 9, "guidance_scale": 0.0}
    return {}


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
