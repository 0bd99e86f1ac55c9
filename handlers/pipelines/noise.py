"""The noise that an image starts from: its seed's, or one between two seeds'."""

import sys
from typing import Any

import torch

from handlers.pipelines.schedulers import draw
from handlers.request.fields import Variation


class VariedGenerator(torch.Generator):
    """A seed's generator for an image that starts from noise on the way to another seed's; all later noise is its own.

    Attributes:
        variation: the other seed, and how far on the way.
    """

    variation: Variation


def generator(seed: int, variation: Variation | None = None) -> torch.Generator:
    """On the CPU for every device: the same seed starts from the same noise everywhere."""
    if variation is None:
        return torch.Generator("cpu").manual_seed(seed)
    own = VariedGenerator("cpu")
    own.manual_seed(seed)
    own.variation = variation
    return own


def use_variations(pipeline: Any) -> None:
    """Has a stock pipeline's `prepare_latents` draw its noise by `initial_noise`, which takes a name of its module."""
    vars(sys.modules[type(pipeline).prepare_latents.__module__])["randn_tensor"] = initial_noise


def initial_noise(
    shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
) -> torch.Tensor:
    """diffusers' `randn_tensor`, with its arguments and its numbers, unless the generator is a VariedGenerator."""
    noise = draw(shape, generator, device, dtype, layout)
    if not isinstance(generator, VariedGenerator):
        return noise
    others = torch.Generator("cpu").manual_seed(generator.variation.seed)
    return between(noise, draw(shape, others, device, dtype, layout), generator.variation.strength)


def between(noise: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """The noise at a share, 0 to 1, of the arc from one to the other, both (1, channels, height, width).

    A straight line between them would pass through less noise than the model expects. The source is Shoemake,
    Animating rotation with quaternion curves, 1985; AUTOMATIC1111's web UI does the same.
    """
    one, two = noise.float(), other.float()
    angle = ((one * two).sum() / (one.norm() * two.norm())).clamp(-1, 1).acos()
    sine = angle.sin()
    mixed = ((1 - share) * angle).sin() / sine * one + (share * angle).sin() / sine * two
    # without an arc, which two equal seeds have not; no `if`, which would wait for a GPU
    return torch.where(sine > 1e-4, mixed, one).to(noise.dtype)
