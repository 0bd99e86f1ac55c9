"""Language models as text encoders, in 8 bits: diffusers' layerwise casting widens each layer for its call alone."""

import logging
from typing import Any

import torch
from diffusers.hooks import apply_layerwise_casting
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

from handlers.errors import ModelError

logger = logging.getLogger(__name__)

# T5 converts what goes into this layer to the dtype that its weights have between the calls
T5_OUTPUT = r"\bwo$"


def store_in_float8(pipeline: Any, device: torch.device) -> None:
    """Has T5 and the Qwen models store their linear layers' weights as float8_e4m3fn; CLIP's encoders are small.

    Raises ModelError on a Mac's GPU.
    """
    if device.type == "mps":
        raise ModelError("--float8-text-encoders: a Mac's GPU has no float8. Leave it out, or use --device cpu.")
    parts = pipeline.components.items()
    encoders = [module for name, module in parts if name.startswith("text_encoder") and module is not None]
    language_models = [module for module in encoders if "CLIP" not in type(module).__name__]
    if encoders and not language_models:
        logger.warning("--float8-text-encoders has no effect on this model: CLIP alone reads its prompts.")
    for module in language_models:
        skipped = (*DEFAULT_SKIP_MODULES_PATTERN, T5_OUTPUT)
        # an embedding's dtype is the model's, which pipelines ask for
        apply_layerwise_casting(module, torch.float8_e4m3fn, module.dtype, skipped, (torch.nn.Embedding,))
