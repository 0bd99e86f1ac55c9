"""Latents enlarged for a second pass."""

import pytest
import torch

from handlers.imaging.upscaling import LATENTS
from handlers.pipelines.latents import enlarge_latents

LATENT = torch.randn((1, 4, 8, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("upscaler", LATENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_way_gives_the_size_and_keeps_the_precision(upscaler: str, dtype: torch.dtype) -> None:
    for size in ((32, 16), (16, 8), (40, 24), (8, 64), (128, 8)):
        larger = enlarge_latents(LATENT.to(dtype), size, upscaler)
        assert larger.shape == (1, 4, size[1], size[0]) and larger.dtype == dtype
        assert larger.isfinite().all() and larger.float().abs().max() <= 2 * LATENT.abs().max()


def test_the_ways_differ() -> None:
    larger = [enlarge_latents(LATENT, (12, 6), upscaler) for upscaler in LATENTS]
    for index, one in enumerate(larger):
        assert not any(torch.equal(one, other) for other in larger[:index])


def test_nearest_repeats_what_is_there() -> None:
    larger = enlarge_latents(LATENT, (32, 16), "Latent (nearest)")
    assert torch.equal(larger[..., ::2, ::2], LATENT) and torch.equal(larger[..., 1::2, 1::2], LATENT)


def test_of_another_shape_the_middle_is_enlarged() -> None:
    larger = enlarge_latents(LATENT, (16, 16), "Latent (nearest)")
    assert torch.equal(larger[..., ::2, ::2], LATENT[..., 4:12])
