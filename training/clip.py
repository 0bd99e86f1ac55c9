"""The mini-CLIP: a text and an image encoder that meet in one space. The text side is the pipeline's text encoder."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from training import art, concepts
from training.art import STYLES, Art
from training.compose import STRONG, Composer
from training.concepts import Concept
from training.config import Preset, Run
from training.loop import train

IMAGE_SIZE = 64  # what the image side sees, and the safety checker after it
# CLIP's own normalisation, which is what the pipelines' feature extractor does
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def text_config(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=preset.text_width,
        intermediate_size=4 * preset.text_width,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=max(1, preset.text_width // 32),
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        projection_dim=128,
    )


class Clip(nn.Module):
    """Contrastive (https://arxiv.org/abs/2103.00020): a caption and its image come to lie close, others apart."""

    def __init__(self, text: CLIPTextConfig, vision: CLIPVisionConfig) -> None:
        super().__init__()
        self.text = CLIPTextModelWithProjection(text)
        self.vision = CLIPVisionModelWithProjection(vision)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07)

    def loss(self, pixels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        images = F.normalize(self.vision(pixels).image_embeds.float(), dim=-1)
        captions = F.normalize(self.text(tokens).text_embeds.float(), dim=-1)
        scores = self.logit_scale.exp().clamp(max=100) * images @ captions.T  # (B, B)
        right = torch.arange(len(scores), device=scores.device)
        return (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) in -1 … 1 as an image encoder takes them: (B, 3, 64, 64), normalised."""
    small = F.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True) / 2 + 0.5
    mean, deviation = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, DEVIATION))
    return (small - mean) / deviation


def tokens(tokenizer: CLIPTokenizer, captions: list[str], device: str) -> torch.Tensor:
    """(B, longest) token ids. What comes after the end token has no influence on what is learnt, so it is left out."""
    ids: torch.Tensor = tokenizer(captions, padding=True, truncation=True, return_tensors="pt").input_ids
    return ids.to(device)


def wide_concepts(run: Run) -> list[Concept]:
    """All emoji, with their tags as names, those to be drawn with their own names."""
    own = {concept.code: concept for concept in concepts.load(run)}
    return [
        own.get(code) or Concept(code, str(about["label"]), (str(about["label"]), *about["tags"]))  # type: ignore[misc]
        for code, about in art.names(run.art).items()
    ]


def run(run: Run, tokenizer: CLIPTokenizer) -> Clip:
    preset, device = run.preset, run.device
    torch.manual_seed(run.seed)
    listed = concepts.load(run)
    only = {concept.code for concept in listed}
    narrow_art = Art.load(run.art, preset.art_size, list(STYLES), only).to(device)
    narrow = Composer(narrow_art, listed, preset.image_size, STRONG, run.seed)
    wide_art = Art.load(run.art, preset.art_size, list(STYLES)).to(device)
    wide = Composer(wide_art, wide_concepts(run), preset.image_size, STRONG, run.seed)
    model = Clip(text_config(preset, tokenizer), vision_config()).to(device)

    def loss(step: int, done: float) -> torch.Tensor:
        narrow.reseed(run.seed + step)
        wide.reseed(run.seed + step)
        half = preset.clip.batch // 2
        # no image twice in a batch: its captions would be negatives of each other
        draw = torch.Generator().manual_seed(run.seed + step)
        own = narrow.batch(half, chosen=torch.randperm(len(narrow_art), generator=draw)[:half])
        others = wide.batch(half, chosen=torch.randperm(len(wide_art), generator=draw)[:half])
        images = torch.cat([own[0], others[0]]).to(device)
        return model.loss(to_pixels(images), tokens(tokenizer, own[1] + others[1], device))

    train("CLIP", model, loss, preset.clip, run.checkpoint("clip"), device)
    return model


def text_encoder(model: Clip) -> CLIPTextModel:
    """The text side without its projection, as a pipeline has it."""
    encoder = CLIPTextModel(model.text.config)
    encoder.load_state_dict(model.text.text_model.state_dict())
    return encoder.eval()
