"""Images to learn from: a drawing from the art, placed on a plain background, with its caption."""

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from training.art import Art
from training.captions import BACKGROUNDS, describe
from training.concepts import Concept


@dataclass(frozen=True)
class Jitter:
    """How far a drawing strays from the middle: `scale` of the frame's shorter side, the rest as shares of it."""

    scale: tuple[float, float] = (0.82, 0.94)
    shift: float = 0.03
    rotation: float = 0.0  # radians


GENTLE = Jitter()  # what the generator is to imitate: little, so that nothing is spent on where things are
STRONG = Jitter((0.55, 1.0), 0.12, 0.25)  # for those that judge


def backgrounds(names: list[str], draw: torch.Generator) -> torch.Tensor:
    """(B, 3) in 0 … 1: the named colour with a slight deviation."""
    colour = torch.tensor([BACKGROUNDS[name] for name in names], dtype=torch.float32) / 255
    # white stays white: it is what a prompt without a background gets
    plain = torch.tensor([name == "white" for name in names])[:, None]
    colour = torch.where(plain, colour, colour + 0.02 * torch.randn(colour.shape, generator=draw))
    return colour.clamp(0, 1)


def place(
    drawings: torch.Tensor, colours: torch.Tensor, size: tuple[int, int], jitter: Jitter, draw: torch.Generator
) -> torch.Tensor:
    """(B, 4, s, s) uint8 RGBA drawings on grounds of (B, 3) `colours`, as (B, 3, height, width) in -1 … 1.

    Computed on the drawings' device.
    """
    rows, (height, width) = len(drawings), size
    uniform = torch.rand(rows, 4, generator=draw)
    scale = jitter.scale[0] + (jitter.scale[1] - jitter.scale[0]) * uniform[:, 0]
    angle = jitter.rotation * (2 * uniform[:, 1] - 1)
    shift = 2 * jitter.shift * (2 * uniform[:, 2:] - 1)
    side = min(height, width)
    # from the frame's coordinates (-1 … 1 in both directions) to the drawing's
    across, down = width / side / scale, height / side / scale
    theta = torch.stack(
        [
            torch.stack([across * angle.cos(), -down * angle.sin(), shift[:, 0]], 1),
            torch.stack([across * angle.sin(), down * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta.to(drawings.device), [rows, 4, height, width], align_corners=False)
    drawings = drawings.float() / 255
    alpha = drawings[:, 3:]
    layers = F.grid_sample(torch.cat([drawings[:, :3] * alpha, alpha], 1), grid, align_corners=False)
    images = layers[:, :3] + colours.to(drawings.device)[:, :, None, None] * (1 - layers[:, 3:])
    return images.clamp(0, 1) * 2 - 1


class Composer:
    """Composes images of `concepts` from their art, with captions. They lie where the art lies."""

    def __init__(self, art: Art, concepts: list[Concept], size: int, jitter: Jitter, seed: int) -> None:
        self._art = art
        self._size = size
        self._jitter = jitter
        self._index = {concept.code: i for i, concept in enumerate(concepts)}
        self._concepts = concepts
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        self._words = random.Random(seed)

    def batch(
        self, rows: int, height: int | None = None, width: int | None = None, chosen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, list[str], torch.Tensor]:
        """`rows` images (rows, 3, height, width) in -1 … 1, their captions, and the indices of their concepts.

        `chosen` (rows,) says which of the art; drawn at random without it.
        """
        if chosen is None:
            chosen = torch.randint(len(self._art), (rows,), generator=self._draw)
        names = ["white" if self._words.random() < 0.3 else self._words.choice(list(BACKGROUNDS)) for _ in range(rows)]
        size = height or self._size, width or self._size
        images = place(self._art.images[chosen], backgrounds(names, self._draw), size, self._jitter, self._draw)
        captions, indices = [], []
        for i, background in zip(chosen.tolist(), names, strict=True):
            code, style = self._art.labels[i]
            concept = self._concepts[self._index[code]]
            captions.append(describe(concept.names, style, background, self._words))
            indices.append(self._index[code])
        return images, captions, torch.tensor(indices)
