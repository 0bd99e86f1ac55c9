"""The finished parts as a diffusers folder."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer

from training.clip import IMAGE_SIZE
from training.unet import scheduler

DEFAULTS = {"num_inference_steps": 20, "guidance_scale": 3.5}


def pipeline(folder: Path) -> StableDiffusionPipeline:
    """The pipeline of the parts in `folder`, in full precision; without a checker where there is none yet."""
    checker = None
    if (folder / "safety_checker").is_dir():
        checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker", dtype=torch.float32)
    made = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32),
        scheduler=scheduler(),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
        requires_safety_checker=checker is not None,
    )
    made.set_progress_bar_config(disable=True)
    return made


def export(folder: Path, target: Path) -> None:
    """Writes the parts in `folder` as fp16 safetensors to `target`, with the model's own defaults."""
    made = pipeline(folder)
    size = 8 * made.unet.config.sample_size
    made.to(torch.float16).save_pretrained(target, safe_serialization=True)
    defaults = {**DEFAULTS, "drawn_size": size}
    (target / "generation_config.json").write_text(json.dumps(defaults) + "\n", encoding="utf-8")
    files = [file for file in target.rglob("*") if file.is_file()]
    for file in files:
        file.chmod(0o644)  # some are written for their owner alone, which a container's user is not
    weight = sum(file.stat().st_size for file in files)
    print(f"{target}: {weight / 1e6:.1f} MB")
