"""The judge: says which caption fits an image. It shares nothing with the generator.

Neither weights nor images: it learns from other drawings of the same things (art.JUDGE_STYLES), with a
convolutional image side and a bag of words as text side, and is measured on the generator's art, which it never saw.
"""

import re
import zlib

import torch
import torch.nn.functional as F
from torch import nn

from training import art, concepts
from training.art import JUDGE_STYLES, Art
from training.clip import wide_concepts
from training.compose import STRONG, Composer
from training.concepts import Concept
from training.config import Run
from training.loop import train
from training.safety import blurred

IMAGE_SIZE = 64
WORDS = 8192  # words are hashed: a collision of two of the few hundred that count is improbable


class Judge(nn.Module):
    def __init__(self, width: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (32, 64, 128, 256):
            layers += [nn.Conv2d(channels, out, 3, 2, 1), nn.GroupNorm(8, out), nn.GELU()]
            layers += [nn.Conv2d(out, out, 3, 1, 1), nn.GroupNorm(8, out), nn.GELU()]
            channels = out
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * (IMAGE_SIZE // 16) ** 2, width))
        self.words = nn.EmbeddingBag(WORDS, width, mode="mean")
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def scores(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """(B, captions) cosines of images (B, 3, H, W) in -1 … 1."""
        small = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        seen = F.normalize(self.image(small).float(), dim=-1)
        words = [[zlib.crc32(word.encode()) % WORDS for word in re.findall(r"\w+", text.lower())] for text in captions]
        offsets = torch.tensor([0, *[len(w) for w in words][:-1]]).cumsum(0)
        flat = torch.tensor([word for line in words for word in line])
        read = F.normalize(self.words(flat.to(images.device), offsets.to(images.device)).float(), dim=-1)
        return seen @ read.T

    def loss(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Contrastive, where rows of the same caption are all right."""
        scores = self.logit_scale.exp().clamp(max=100) * self.scores(images, captions)
        same = torch.tensor([[a == b for b in captions] for a in captions], device=scores.device).float()
        right = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def run(run: Run) -> Judge:
    preset, device = run.preset, run.device
    torch.manual_seed(run.seed + 1)
    listed = concepts.load(run)
    only = {concept.code for concept in listed}
    art.fetch(run.art, JUDGE_STYLES.values())
    art.render(run.art, preset.art_size, JUDGE_STYLES)
    narrow = Composer(_art(run, only), listed, preset.image_size, STRONG, run.seed)
    wide_listed = wide_concepts(run)
    wide = Composer(_art(run), wide_listed, preset.image_size, STRONG, run.seed)
    model = Judge().to(device)

    def loss(step: int, done: float) -> torch.Tensor:
        narrow.reseed(run.seed + step)
        wide.reseed(run.seed + step)
        own, others = narrow.batch(preset.judge.batch * 2 // 3), wide.batch(preset.judge.batch // 3)
        images = torch.cat([own[0], others[0]])
        flip = torch.rand(len(images)) < 0.5  # the generator's art faces either way
        images[flip] = images[flip].flip(-1)
        captions = [listed[i].names[0] for i in own[2]] + [wide_listed[i].names[0] for i in others[2]]
        return model.loss(blurred(images, preset.image_size // 2), captions)

    train("judge", model, loss, preset.judge, run.checkpoint("judge"), device)
    return model


def _art(run: Run, only: set[str] | None = None) -> Art:
    return Art.load(run.art, run.preset.art_size, list(JUDGE_STYLES), only).to(run.device)


def ranks(judge: Judge, images: torch.Tensor, right: torch.Tensor, listed: list[Concept]) -> torch.Tensor:
    """(B,) the rank, from 0, that the right concept's name has among all concepts' names."""
    with torch.no_grad():
        scores = judge.scores(images, [concept.names[0] for concept in listed])
    return (scores > scores.gather(1, right[:, None].to(scores.device))).sum(1).cpu()
