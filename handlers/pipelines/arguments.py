"""The arguments of a stock pipeline's call for a request."""

from collections.abc import Sequence
from copy import copy
from inspect import signature
from typing import Any

from PIL import Image

from handlers.errors import InvalidRequest
from handlers.imaging.documents import fill_masked, model_image
from handlers.imaging.masks import pipeline_mask
from handlers.imaging.regions import Crop
from handlers.pipelines.embeddings import ENCODERS
from handlers.pipelines.families import denoiser_name, has_embedded_guidance, has_true_guidance, longest_side
from handlers.pipelines.schedulers import schedulers
from handlers.request.fields import GenerationRequest


def pipeline_arguments(
    request: GenerationRequest, pipeline: Any, crop: Crop, guides: Sequence[Image.Image] = ()
) -> dict[str, Any]:
    """The arguments of the stock pipeline's `__call__` for a crop of any image of `request`, except the generator.

    A second pass has no image before its first one has ended.

    Arguments that this family's pipeline does not take are left out: latent consistency models take no negative prompt.
    `without_effect` names them.

    Args:
        guides: the image of each of the request's ControlNets, for this crop.

    Raises InvalidRequest for a clip_skip that the model's text encoders have too few layers for, or too large a size.
    """
    most = longest_side(pipeline)
    if most and max(crop.size) > most:
        raise InvalidRequest(f"width and height must be at most {most} for this model.")
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "eta": request.eta,
    }
    # UNets' img2img takes the image's size; that of transformers would take the model's
    if request.task != "img2img" or denoiser_name(pipeline) == "transformer":
        arguments |= {"width": crop.size[0], "height": crop.size[1]}
    if has_true_guidance(pipeline):
        arguments["true_cfg_scale"] = arguments.pop("guidance_scale")
    if request.task in ("img2img", "masking"):
        arguments["strength"] = request.strength
    if request.init_image is not None:
        arguments["image"] = image = model_image(request.init_image, crop.box, crop.size)
        if request.mask_image is not None:
            mask = pipeline_mask(request.mask_image.crop(crop.box), crop.size)
            arguments |= {"image": fill_masked(image, mask, request.mask_fill), "mask_image": mask}
    if guides:
        # of txt2img's pipelines, the only image
        name = "control_image" if "image" in arguments or "strength" in arguments else "image"
        each = {
            name: guides,
            "controlnet_conditioning_scale": [control.scale for control in request.controls],
            "control_guidance_start": [control.start for control in request.controls],
            "control_guidance_end": [control.end for control in request.controls],
        }
        arguments |= {name: [*values] if len(values) > 1 else values[0] for name, values in each.items()}
    taken = signature(pipeline.__call__).parameters
    if "clip_skip" in taken:
        arguments["clip_skip"] = _clip_skip(request.clip_skip, pipeline)
    return {name: value for name, value in arguments.items() if name in taken}


def without_effect(request: GenerationRequest, pipeline: Any) -> list[str]:
    """Sentences about the fields that the request gives, and that this family's pipeline does not know or use."""
    taken = signature(pipeline.__call__).parameters
    given = {"negative_prompt": request.negative_prompt, "clip_skip": request.clip_skip, "eta": request.eta}
    lost = [name for name, value in given.items() if value and name not in taken]
    if request.negative_prompt and has_embedded_guidance(pipeline):
        lost.insert(0, "negative_prompt")
    sentences = [f"{', '.join(lost)}: without effect on this model."] if lost else []
    is_told = "negative_prompt" in lost or not request.negative_prompt.strip()
    if not is_told and not _is_guided(pipeline, request.guidance_scale):
        sentences.append(f"negative_prompt: without effect at guidance_scale={request.guidance_scale:g}.")
    if request.eta and "eta" not in lost and not _takes_eta(request, pipeline):
        sentences.append("eta: without effect with this scheduler. scheduler=DDIM knows it.")
    return sentences


def _is_guided(pipeline: Any, scale: float) -> bool:
    """Whether a pipeline generates with guidance at this scale."""
    asked = copy(pipeline)
    asked._guidance_scale = scale
    return bool(getattr(asked, "do_classifier_free_guidance", scale > 1))


def _takes_eta(request: GenerationRequest, pipeline: Any) -> bool:
    kind = schedulers(pipeline)[request.sampler.kind] if request.sampler else pipeline.scheduler
    return "eta" in signature(kind.step).parameters


def _clip_skip(clip_skip: int | None, pipeline: Any) -> int | None:
    if clip_skip is None:
        return None
    encoders = [getattr(pipeline, name, None) for name in ENCODERS.values()]
    most = min(encoder.config.num_hidden_layers for encoder in encoders if encoder is not None)
    most -= encoders[1] is not None  # SDXL's pipelines count from the layer before the last
    if clip_skip > most:
        raise InvalidRequest(f"clip_skip must be a whole number from 0 to {most} for this model, not {clip_skip}.")
    return clip_skip
