"""The UNet: learns to take the noise off latents, led by captions."""

import random
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from training import concepts, loop
from training.art import STYLES, Art
from training.compose import GENTLE, Composer
from training.config import Preset, Run
from training.loop import autocast, train

DROPPED = 0.1  # share of captions that are left empty, for classifier-free guidance


def create(preset: Preset) -> UNet2DConditionModel:
    """Besides the cross-attention, the caption as a whole is added to the time embedding, which scales and shifts every
    layer: what is asked for is learnt several times sooner so.
    """
    return UNet2DConditionModel(
        sample_size=preset.image_size // 8,
        down_block_types=["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in preset.unet_attention],
        up_block_types=["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(preset.unet_attention)],
        block_out_channels=preset.unet_widths,
        layers_per_block=1,
        cross_attention_dim=preset.text_width,
        attention_head_dim=tuple(max(1, width // 32) for width in preset.unet_widths),
        norm_num_groups=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=max(1, preset.text_width // 32),
        resnet_time_scale_shift="scale_shift",
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """Noise to the very end (https://arxiv.org/abs/2305.08891): plain backgrounds need it, black ones above all."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


class Pool:
    """Encoded images of one size: the VAE and the text encoder run once for each, not once for every step.

    Attributes:
        latents: (N, 4, height / 8, width / 8).
        states: (N, 77, text width), half precision.
    """

    def __init__(
        self, composer: Composer, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer,
        rows: int, size: tuple[int, int], device: str, at_once: int,
    ) -> None:  # fmt: skip
        """`at_once`: rows that are encoded together."""
        self._parts = composer, vae, text_encoder, tokenizer
        self._size = size
        self._device = device
        self._next = 0
        self._at_once = at_once
        encoded = [self._encode(min(at_once, rows - i)) for i in range(0, rows, at_once)]
        self.latents, self.states = (torch.cat(parts) for parts in zip(*encoded, strict=True))

    def _encode(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        composer, vae, text_encoder, tokenizer = self._parts
        images, captions, _ = composer.batch(rows, *self._size)
        with torch.no_grad(), autocast(self._device):
            images = images.to(self._device, memory_format=loop.LAYOUT)
            latents = vae.encode(images).latent_dist.mean.float()
            return latents, encode_text(text_encoder, tokenizer, captions).half()

    def renew(self) -> None:
        """Puts new images in the place of the oldest."""
        rows = min(self._at_once, len(self.latents) - self._next)
        place = slice(self._next, self._next + rows)
        self.latents[place], self.states[place] = self._encode(rows)
        self._next = (self._next + rows) % len(self.latents)

    def batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(self.latents), (rows,), device=self.latents.device)
        return self.latents[chosen], self.states[chosen].float()


def encode_text(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """(B, 77, width) hidden states, as the pipelines make them."""
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states: torch.Tensor = text_encoder(ids.to(text_encoder.device))[0]
    return states


def loss_of(
    unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """v-prediction (https://arxiv.org/abs/2202.00512), with less weight where there is almost no noise to find."""
    timesteps = torch.randint(len(alphas_cumprod), (len(latents),), device=latents.device)
    alpha = alphas_cumprod[timesteps][:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
    noisy = noisy.contiguous(memory_format=loop.LAYOUT)
    predicted = unet(noisy, timesteps, states).sample
    # min-SNR (https://arxiv.org/abs/2303.09556) with its gamma of 5, but full weight at the noisy end
    weight = (5 * (1 - alpha)).clamp(max=1)
    return (weight * F.mse_loss(predicted.float(), target, reduction="none")).mean()


def run(
    run: Run, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer,
    start: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:  # fmt: skip
    """Trains from nothing, from a checkpoint, or from the weights of `start`."""
    preset, device = run.preset, run.device
    begin = time.monotonic()
    torch.manual_seed(run.seed)
    listed = concepts.load(run)
    drawings = Art.load(run.art, preset.art_size, list(STYLES), {concept.code for concept in listed}).to(device)
    composer = Composer(drawings, listed, preset.image_size, GENTLE, run.seed)
    model = (start or create(preset)).to(device, memory_format=loop.LAYOUT)
    if device == "cpu":
        model.set_attn_processor(AttnProcessor())  # the fused attention's backward pass is slow there: 15 % of a step
    vae.to(device), text_encoder.to(device)

    full = preset.image_size
    sizes = [(full, full), (full, full * 3 // 4), (full * 3 // 4, full), (full, full // 2), (full // 2, full)]
    rows = [preset.pool] + [max(1, preset.pool // 12)] * 4
    pools = [
        Pool(composer, vae, text_encoder, tokenizer, n, size, device, preset.encoded)
        for n, size in zip(rows, sizes, strict=True)
    ]
    with torch.no_grad():
        empty = encode_text(text_encoder, tokenizer, [""])
    alphas_cumprod = scheduler().alphas_cumprod.to(device)

    def prepare(step: int, done: float) -> tuple[int, tuple[torch.Tensor, torch.Tensor]]:
        draw = random.Random(step)
        kind = draw.randrange(1, len(pools)) if draw.random() < preset.mixed_sizes else 0
        if step % preset.refresh == preset.refresh - 1:
            pools[kind].renew()
        return kind, pools[kind].batch(preset.unet.batch)

    def loss(kind: int, latents: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        dropped = torch.rand(len(states), device=states.device) < DROPPED
        return loss_of(model, latents, torch.where(dropped[:, None, None], empty, states), alphas_cumprod)

    stage = preset.unet
    if stage.minutes:  # what the pools took is part of them
        stage = replace(stage, minutes=max(0.01, stage.minutes - (time.monotonic() - begin) / 60))
    train("UNet", model, loss, stage, run.checkpoint("unet"), device, preset.average, prepare)
    return model
