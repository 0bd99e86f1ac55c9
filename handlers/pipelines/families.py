"""What a stock pipeline's parts and signature say about its family. There is no list of model names.

Imports no torch.
"""

import json
from inspect import signature
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

DENOISERS = ("unet", "transformer")  # a pipeline has one of them


def denoiser_name(pipeline: Any) -> str:
    """The name of the part that predicts the noise; "" if it has none of DENOISERS."""
    return next((name for name in DENOISERS if getattr(pipeline, name, None) is not None), "")


def needs_range(folder: Path) -> bool:
    """Whether a model overflows in float16: transformers do, and the language models that read their prompts.

    Args:
        folder: in diffusers' format, or a single file.
    """
    if folder.suffix == ".safetensors" and folder.is_file():
        try:
            with safe_open(folder, "np") as opened:
                names = opened.keys()
        except (OSError, SafetensorError):  # its loading says what is wrong
            return False
        return any("joint_blocks." in name for name in names)  # of Stable Diffusion 3
    index = folder / "model_index.json"
    return index.is_file() and "transformer" in json.loads(index.read_text(encoding="utf-8"))


def denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, denoiser_name(pipeline))


def has_chunked_prompts(pipeline: Any) -> bool:
    """Whether prompts are encoded in chunks, with weights: as UNets were trained to read them, by CLIP alone."""
    return denoiser_name(pipeline) == "unet"


def size_multiple(pipeline: Any) -> int:
    """The pixels that the sides of an image are multiples of: transformers take latents in patches of 2 x 2."""
    return int(pipeline.vae_scale_factor) * (1 if denoiser_name(pipeline) == "unet" else 2)


def longest_side(pipeline: Any) -> int | None:
    """The pixels up to which a transformer knows where its tokens are; None without a bound."""
    if denoiser_name(pipeline) != "transformer":
        return None
    config = denoiser(pipeline).config
    most = config.get("pos_embed_max_size")
    return int(most * config.patch_size * pipeline.vae_scale_factor) if most else None


def has_true_guidance(pipeline: Any) -> bool:
    """Whether the guidance scale is `true_cfg_scale`: of a pipeline that knows both, if the model was not distilled."""
    takes = "true_cfg_scale" in signature(pipeline.__call__).parameters
    return takes and not denoiser(pipeline).config.guidance_embeds


def rows_with_guidance(pipeline: Any) -> int:
    """The rows of one image in a call: two, unless guidance is an input, or takes a second call."""
    return 1 if has_true_guidance(pipeline) or has_embedded_guidance(pipeline) else 2


def has_embedded_guidance(pipeline: Any) -> bool:
    """Whether the guidance is an input of the transformer, so that a negative prompt has no effect."""
    return denoiser_name(pipeline) == "transformer" and bool(denoiser(pipeline).config.get("guidance_embeds"))
