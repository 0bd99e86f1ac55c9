"""`python -m training STAGE`: makes the embedded model, one stage after the other. See README.md beside this file."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from training import art, clip, evaluate, export, judge, safety, tokenizer, unet, vae
from training.config import EMBEDDED, PRESETS, Run

STAGES = ("fetch", "tokenizer", "clip", "vae", "unet", "safety", "export", "evaluate")
LONG = ("clip", "vae", "unet", "safety", "judge")  # those that train


def perform(stage: str, run: Run, start: Path | None, target: Path) -> int:
    """Runs one stage. Returns a process exit status."""
    model = run.model
    if stage == "fetch":
        art.fetch(run.art, [*art.STYLES.values(), art.NAMES])
        tokenizer.fetch(run.art)
        art.render(run.art, run.preset.art_size, art.STYLES)
    elif stage == "tokenizer":
        tokenizer.build(run.art).save_pretrained(model / "tokenizer")
    elif stage == "clip":
        trained = clip.run(run, _tokenizer(model))
        clip.text_encoder(trained).save_pretrained(model / "text_encoder")
        trained.vision.save_pretrained(run.folder / "clip-vision")
    elif stage == "vae":
        vae.run(run).save_pretrained(model / "vae")
    elif stage == "unet":
        first = UNet2DConditionModel.from_pretrained(start / "unet", dtype=torch.float32) if start else None
        frozen = AutoencoderKL.from_pretrained(model / "vae", dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
        unet.run(run, frozen, text_encoder, _tokenizer(model), first).save_pretrained(model / "unet")
    elif stage == "safety":
        vision = CLIPVisionModelWithProjection.from_pretrained(run.folder / "clip-vision", dtype=torch.float32)
        drawn = evaluate.for_checker(export.pipeline(model), run)
        safety.run(run, vision, drawn).save_pretrained(model / "safety_checker")
    elif stage == "export":
        export.export(model, target)
    elif stage == "judge":
        judge.run(run)
    elif stage == "evaluate":
        perform("fetch", run, None, target)
        return evaluate.run(run, target)
    return 0


def _tokenizer(model: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(model / "tokenizer")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "judge", "all"], help="'all' runs them in their order")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="shapes and lengths (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of this stage, in place of the preset's")
    parser.add_argument("--minutes", type=float, help="end this stage after so many, in place of the preset's")
    parser.add_argument("--start", type=Path, help="a diffusers folder whose UNet's weights to go on from")
    parser.add_argument("--work", type=Path, help="folder for data and checkpoints (default: training/work)")
    parser.add_argument("--target", type=Path, default=EMBEDDED, help="the model that export writes (models/embedded)")
    options = parser.parse_args(argv)

    run = Run(PRESETS[options.preset], options.seed, device="cuda" if torch.cuda.is_available() else "cpu")
    if options.work:
        run = replace(run, folder=options.work)
    if options.stage in LONG:
        run = run.with_length(options.stage, options.steps, options.minutes)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        print(f"-- {stage}", flush=True)
        status = perform(stage, run, options.start, options.target)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
