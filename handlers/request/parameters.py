"""What an image was generated with, as the text that AUTOMATIC1111's web UI writes into its files and reads again."""

import json

from handlers.request.fields import GenerationRequest
from handlers.request.hires import Hires
from handlers.request.samplers import Sampler, name_of


def parameters_text(request: GenerationRequest, index: int, model: str, own_scheduler: str) -> str:
    """The parameters of output `index`, of at least two lines.

    Args:
        own_scheduler: what the model uses if the request names no scheduler.
    """
    own = Sampler(own_scheduler, {}, name_of(own_scheduler))
    sampler = request.sampler or own
    values: dict[str, object] = {
        "Steps": request.num_inference_steps,
        "Sampler": sampler.name,
        **({"Schedule type": sampler.schedule} if sampler.schedule else {}),
        "CFG scale": request.guidance_scale,
        "Seed": request.seed_of(index),
        "Size": "{}x{}".format(*(request.crops[0].box[2:] if request.hires else request.answer_size)),
        "Model": model,
    }
    if variation := request.variation_of(index):
        values |= {"Variation seed": variation.seed, "Variation seed strength": variation.strength}
    if request.init_image is not None:
        values["Denoising strength"] = request.strength
    if request.hires is not None:
        values["Denoising strength"] = request.hires.strength
    if request.clip_skip is not None:
        values["Clip skip"] = request.clip_skip + 1  # the web UI counts from the last layer, which is its 1
    if request.mask_blur:
        values["Mask blur"] = request.mask_blur
    for i, control in enumerate(request.controls):
        values[f"ControlNet {i}"] = f"Model: {control.net}, Weight: {control.scale:g}"
    if request.hires is not None:
        values |= _of_second_pass(request, request.hires, own)
    values["Version"] = "sd-api-server"  # the last one, since some program cuts its end off
    lines = [request.prompt]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items()))
    return "\n".join(lines)


def _of_second_pass(request: GenerationRequest, hires: Hires, own: Sampler) -> dict[str, object]:
    """What the web UI says of a second pass: what is as in the first one is left out."""
    (width, height), (to_width, to_height) = request.crops[0].box[2:], hires.size
    enlarged = to_width * height == to_height * width
    values: dict[str, object] = {
        **({"Hires upscale": f"{to_width / width:g}"} if enlarged else {"Hires resize": f"{to_width}x{to_height}"}),
        "Hires steps": hires.num_inference_steps,
        "Hires upscaler": hires.upscaler,
    }
    sampler = hires.sampler or own
    if sampler != (request.sampler or own):
        values["Hires sampler"] = sampler.name
        values |= {"Hires schedule type": sampler.schedule} if sampler.schedule else {}
    if hires.prompt != request.prompt:
        values["Hires prompt"] = hires.prompt
    if hires.negative_prompt != request.negative_prompt:
        values["Hires negative prompt"] = hires.negative_prompt
    if hires.guidance_scale != request.guidance_scale:
        values["Hires CFG Scale"] = hires.guidance_scale
    return values


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ",:\n") else value
