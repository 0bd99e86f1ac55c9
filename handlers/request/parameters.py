"""What an image was generated with, as the text that AUTOMATIC1111's web UI writes into its files and reads again."""

import json

from handlers.request.fields import GenerationRequest
from handlers.request.samplers import Sampler, name_of


def parameters_text(request: GenerationRequest, index: int, model: str, own_scheduler: str) -> str:
    """The parameters of output `index`, of at least two lines.

    Args:
        own_scheduler: what the model uses if the request names no scheduler.
    """
    sampler = request.sampler or Sampler(own_scheduler, {}, name_of(own_scheduler))
    values: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": sampler.name,
        **({"Schedule type": sampler.schedule} if sampler.schedule else {}),
        "CFG scale": request.guidance_scale,
        "Seed": request.seed_of(index),
        "Size": "{}x{}".format(*request.answer_size),
        "Model": model,
    }
    if variation := request.variation_of(index):
        values |= {"Variation seed": variation.seed, "Variation seed strength": variation.strength}
    if request.init_image is not None:
        values["Denoising strength"] = request.strength
    if request.clip_skip is not None:
        values["Clip skip"] = request.clip_skip + 1  # the web UI counts from the last layer, which is its 1
    if request.mask_blur:
        values["Mask blur"] = request.mask_blur
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()))
    return "\n".join(lines)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value
