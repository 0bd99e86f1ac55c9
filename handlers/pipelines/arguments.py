"""What a stock pipeline is called with for a request."""

from inspect import signature
from typing import Any

import torch
from PIL import Image

from handlers.request import images
from handlers.request.fields import GenerationRequest


def generator(seed: int) -> torch.Generator:
    """On the CPU whatever the device: the same seed starts from the same noise everywhere."""
    return torch.Generator("cpu").manual_seed(seed)


def pipeline_arguments(request: GenerationRequest, pipeline: Any) -> dict[str, Any]:
    """The arguments of the stock pipeline's `__call__` for any image of `request`, but for the generator.

    Without those that this family's pipeline has no use for: latent consistency models take no negative prompt.
    """
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "eta": request.eta,
    }
    size = request.width, request.height
    if request.task in ("txt2img", "masking"):
        arguments |= {"width": size[0], "height": size[1]}
    if request.init_image is not None:
        arguments |= {"image": images.resize_to(request.init_image, size), "strength": request.strength}
    if request.mask_image is not None:
        arguments["mask_image"] = request.mask_image.resize(size, Image.Resampling.BILINEAR)
    taken = signature(pipeline.__call__).parameters
    return {name: value for name, value in arguments.items() if name in taken}
