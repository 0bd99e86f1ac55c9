"""A first pass's latents, enlarged for the second one."""

import torch

from handlers.imaging.fitting import middle
from handlers.imaging.upscaling import LATENTS


def enlarge_latents(latents: torch.Tensor, size: tuple[int, int], upscaler: str) -> torch.Tensor:
    """Latents of (1, channels, height, width) at `size`, their width and height, by one of LATENTS.

    Of latents of another shape, the middle. For the engine's thread.
    """
    height, width = latents.shape[-2:]
    left, top, right, bottom = middle((width, height), size)
    # in float32, since not every mode has half precision
    kept = latents[..., top:bottom, left:right].float()
    larger = torch.nn.functional.interpolate(kept, size=(size[1], size[0]), **LATENTS[upscaler])
    return larger.to(latents.dtype)
