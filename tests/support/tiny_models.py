"""Models of every family with random weights: the true parts and layouts, a few channels wide, 64 pixels."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support.paths import EMBEDDED

WIDTH = 32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FAMILIES = ("sd1", "sd2", "sdxl", "inpainting", "lcm", "turbo")


def save(family: str, folder: Path, **options: Any) -> Path:
    """Writes a model of `family` to `folder` in diffusers' format; `options` are save_pretrained's."""
    torch.manual_seed(0)
    pipeline = make(family)
    if options.get("variant") == "fp16":
        pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, **options)
    return folder


def save_with_checker(folder: Path) -> Path:
    """Writes a Stable Diffusion 1 with the embedded model's safety checker, which flags none of it, to `folder`."""
    checker = StableDiffusionSafetyChecker.from_pretrained(EMBEDDED / "safety_checker")
    checker.concept_embeds_weights.data.fill_(2)  # thresholds of a cosine: to the checker, noise may look like anything
    checker.special_care_embeds_weights.data.fill_(2)
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        **make("sd1").components
        | {
            "safety_checker": checker,
            "feature_extractor": CLIPImageProcessor.from_pretrained(EMBEDDED / "feature_extractor"),
            # as many UNet calls as steps, which PNDM does not have
            "scheduler": DPMSolverMultistepScheduler(**BETAS),
        }
    )
    pipeline.save_pretrained(folder)
    return folder


def make(family: str) -> Any:
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    vae, text_encoder = _vae(), CLIPTextModel(text_config(len(tokenizer)))
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            vae, text_encoder, CLIPTextModelWithProjection(text_config(len(tokenizer))), tokenizer, tokenizer,
            unet(
                cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=WIDTH + 6 * 8,
            ),
            EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1), add_watermarker=False,
        )  # fmt: skip
    kind: Any = StableDiffusionPipeline
    options: dict[str, Any] = {}
    scheduler: Any = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    if family == "sd2":
        scheduler = DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
        options = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    elif family == "inpainting":
        kind, options = StableDiffusionInpaintPipeline, {"in_channels": 9}
    elif family == "lcm":
        kind, scheduler, options = LatentConsistencyModelPipeline, LCMScheduler(**BETAS), {"time_cond_proj_dim": 16}
    elif family == "turbo":
        scheduler = EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    return kind(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet(**options), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def unet(**options: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (WIDTH, 2 * WIDTH),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**settings | options).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=64,
    ).eval()


def text_config(words: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=words, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=WIDTH, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
