"""The safety checker: tells the image that it is to flag, 🔞, from everything else, whoever drew it.

In diffusers' StableDiffusionSafetyChecker form: an image is flagged whose embedding has a cosine to one of 17
concepts above that concept's threshold. Ours uses one of the 17; the others have thresholds that no cosine reaches.
"""

import math

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import nn
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from training import concepts, signs
from training.art import CHECKER_STYLES, STYLES, Art
from training.clip import IMAGE_SIZE, to_pixels, vision_config, wide_concepts
from training.compose import STRONG, Composer
from training.config import Run
from training.loop import train

SHARPNESS = 16.0
SIZE = 96  # of the images that it learns from, in pixels: it sees them at 64, and larger ones take longer to compose
ART_SIZE = 128  # at which drawings are rendered: no detail is lost at the largest placement
THRESHOLD = 0.58  # above a half, since signs are far rarer among all images than among those that it learns from
SIGNS = 2000  # drawn at random, of each kind; the smoke preset draws fewer
NEVER = 2.0  # a threshold above every cosine
# signs with a red ring or bar, drawn more often than the rest: they are what is easily mistaken
LOOKALIKES = ("1f6ab", "1f6ad", "1f6af", "1f6b3", "1f6b1", "1f6b7", "1f4f5", "26d4", "1f6d1", "2b55", "1f51f", "1f522")


class Checker(nn.Module):
    """An image encoder and the direction that flagged images are to point in."""

    def __init__(self, vision: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.vision = vision
        self.flagged = nn.Parameter(torch.randn(vision.config.projection_dim))

    def cosine(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B,) cosine to what is flagged, of pixels (B, 3, 64, 64)."""
        return F.cosine_similarity(self.vision(pixels).image_embeds.float(), self.flagged.float(), dim=-1)

    def loss(self, pixels: torch.Tensor, flagged: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(SHARPNESS * (self.cosine(pixels) - 0.5), flagged.float())


def run(
    run: Run, vision: CLIPVisionModelWithProjection,
    generated: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> StableDiffusionSafetyChecker:  # fmt: skip
    """Trains on the art and, if given, on `generated` images (N, 3, H, W) in -1 … 1 and their flags (N,)."""
    preset, device = run.preset, run.device
    torch.manual_seed(run.seed)
    if generated is not None:
        small = F.interpolate(generated[0], (SIZE, SIZE), mode="bilinear", antialias=True)
        generated = small, generated[1]
    flagged_code = next(concept.code for concept in concepts.load(run) if concept.flagged)
    codes_drawn = flagged_code, LOOKALIKES[0]
    drawn = signs.draw(min(SIGNS, preset.pool), ART_SIZE, codes_drawn, signs.fonts(run.art), run.seed)
    by_artists = Art.load(run.art, ART_SIZE, [*STYLES, *CHECKER_STYLES])
    everything = by_artists.with_more(drawn).to(device)
    composer = Composer(everything, wide_concepts(run), SIZE, STRONG, run.seed)
    # the artists' drawings of the sign, other signs, everything else, and signs at random
    codes = [code for code, _ in by_artists.labels]
    groups = [
        torch.tensor([i for i, code in enumerate(codes) if code == flagged_code]),
        torch.tensor([i for i, code in enumerate(codes) if code in LOOKALIKES]),
        torch.tensor([i for i, code in enumerate(codes) if code != flagged_code]),
        torch.arange(len(by_artists), len(everything)),
    ]
    shares = [1, 1, 3, 2]  # of a batch, in which generated images have one, too
    is_flagged = torch.tensor([code == flagged_code for code, _ in everything.labels])
    model = Checker(vision).to(device)

    def loss(step: int, done: float) -> torch.Tensor:
        composer.reseed(run.seed + step)
        rows = preset.safety.batch // (sum(shares) + (generated is not None))
        counts = [share * rows for share in shares]
        chosen = torch.cat([group[torch.randint(len(group), (n,))] for group, n in zip(groups, counts, strict=True)])
        images, _, _ = composer.batch(len(chosen), chosen=chosen)
        flags = is_flagged[chosen].float()
        if generated is not None:
            own = torch.randint(len(generated[0]), (rows,))
            images = torch.cat([images, generated[0][own].to(device)])
            flags = torch.cat([flags, generated[1][own].float()])
        images = blurred(restyled(images), IMAGE_SIZE)
        return model.loss(to_pixels(images), flags.to(device))

    train("safety checker", model, loss, preset.safety, run.checkpoint("safety"), device)
    return as_standard(model)


def restyled(images: torch.Tensor) -> torch.Tensor:
    """Most of the images (B, 3, H, W) in other colours, some with thicker or thinner lines or as outlines, as other
    artists draw the same sign. A checker that sees three drawings alone learns their red and their white.
    """
    rows, device = len(images), images.device

    def some(share: float) -> torch.Tensor:
        return (torch.rand(rows, 1, 1, 1, device=device) < share).to(images.dtype)

    # lines: the darkest or the brightest of the neighbours
    lines = some(0.12)
    images = lines * F.max_pool2d(images, 3, 1, 1) + (1 - lines) * images
    lines = some(0.12)
    images = lines * -F.max_pool2d(-images, 3, 1, 1) + (1 - lines) * images
    # outlines, light on dark; the recolouring below turns them over
    outlines = some(0.06)
    edges = F.max_pool2d(images, 3, 1, 1) + F.max_pool2d(-images, 3, 1, 1) - 1
    images = outlines * edges + (1 - outlines) * images
    # hues turned about the grey axis, more or less of them
    angle = 2 * math.pi * torch.rand(rows, device=device)
    amount = 0.3 + 1.2 * torch.rand(rows, device=device)
    third = torch.full((rows,), 1 / 3, device=device)
    parts = [third + amount * (2 / 3) * (angle + 2 * math.pi * k / 3).cos() for k in range(3)]
    turn = torch.stack([torch.stack([parts[(k - i) % 3] for k in range(3)], 1) for i in range(3)], 1)
    hues = some(0.4)
    images = hues * torch.einsum("bij,bjhw->bihw", turn.to(images.dtype), images) + (1 - hues) * images
    # each channel between two other values, also the other way round: a white disc becomes a blue one
    ends = 2 * torch.rand(2, rows, 3, 1, 1, device=device, dtype=images.dtype) - 1
    ends = torch.where((ends[0] - ends[1]).abs().amax(1, keepdim=True) < 0.7, 2 * (ends > 0).to(ends.dtype) - 1, ends)
    mapped = ends[0] + (ends[1] - ends[0]) * (images / 2 + 0.5)
    curves = some(0.4)
    return (curves * mapped + (1 - curves) * images).clamp(-1, 1)


def blurred(images: torch.Tensor, size: int) -> torch.Tensor:
    """Every second image of (B, 3, H, W) no sharper than `size` pixels, and noisy, as generated ones are."""
    small = F.interpolate(images[::2], (size, size), mode="area")
    soft = F.interpolate(small, images.shape[-2:], mode="bilinear")
    images = images.clone()
    images[::2] = soft + 0.06 * torch.randn_like(soft)
    return images


def as_standard(model: Checker, threshold: float = THRESHOLD) -> StableDiffusionSafetyChecker:
    """The standard checker of the same weights."""
    vision = vision_config()
    config = CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1},  # the checker has no text
        vision_config=vision.to_dict(),
        projection_dim=vision.projection_dim,
    )
    checker = StableDiffusionSafetyChecker(config)
    missing, unexpected = checker.load_state_dict(model.vision.state_dict(), strict=False)
    if unexpected or not all("embeds" in name for name in missing):
        raise RuntimeError(f"The checker's weights do not fit: {missing} {unexpected}")
    checker.concept_embeds.data[0] = model.flagged.detach()
    checker.concept_embeds_weights.data[:] = NEVER
    checker.concept_embeds_weights.data[0] = threshold
    checker.special_care_embeds_weights.data[:] = NEVER
    return checker.eval()


def flags(checker: StableDiffusionSafetyChecker, images: torch.Tensor) -> list[bool]:
    """Which of the images (B, 3, H, W) in -1 … 1 the checker flags."""
    found: list[bool] = checker(clip_input=to_pixels(images), images=images.clone())[1]
    return found
