"""A first pass's latents, enlarged for the second one."""

import torch

from handlers.imaging.upscaling import LATENTS


def enlarge_latents(latents: torch.Tensor, size: tuple[int, int], upscaler: str) -> torch.Tensor:
    """Latents of (1, channels, height, width) at `size`, their width and height, by one of LATENTS.

    Of latents of another shape, the middle. For the engine's thread.
    """
    height, width = latents.shape[-2:]
    # 1. the largest part of the middle that has the new shape
    kept_width = max(1, min(width, round(height * size[0] / size[1])))
    kept_height = max(1, min(height, round(width * size[1] / size[0])))
    left, top = (width - kept_width) // 2, (height - kept_height) // 2
    middle = latents[..., top : top + kept_height, left : left + kept_width]
    # 2. in float32, since not every mode has half precision
    larger = torch.nn.functional.interpolate(middle.float(), size=(size[1], size[0]), **LATENTS[upscaler])
    return larger.to(latents.dtype)
