"""`python -m training STAGE`: makes the embedded model, one stage after the other. See README.md beside this file."""

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from training import art, clip, evaluate, export, judge, safety, tokenizer, unet, vae
from training.config import EMBEDDED, PRESETS, Run
from training.generate import for_checker

STAGES = ("fetch", "tokenizer", "clip", "vae", "decoder", "unet", "safety", "export", "evaluate")
LONG = ("clip", "vae", "decoder", "unet", "safety", "judge")  # those that train


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
    elif stage == "decoder":
        made = AutoencoderKL.from_pretrained(model / "vae", dtype=torch.float32)
        vae.run_decoder(run, made).save_pretrained(model / "vae")
    elif stage == "unet":
        first = UNet2DConditionModel.from_pretrained(start / "unet", dtype=torch.float32) if start else None
        frozen = AutoencoderKL.from_pretrained(model / "vae", dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder", dtype=torch.float32)
        unet.run(run, frozen, text_encoder, _tokenizer(model), first).save_pretrained(model / "unet")
    elif stage == "safety":
        art.fetch(run.art, [*art.CHECKER_STYLES.values(), art.FONTS])
        art.render(run.art, safety.ART_SIZE, art.STYLES | art.CHECKER_STYLES)
        vision = CLIPVisionModelWithProjection.from_pretrained(run.folder / "clip-vision", dtype=torch.float32)
        generated = for_checker(export.pipeline(model), run)
        safety.run(run, vision, generated).save_pretrained(model / "safety_checker")
    elif stage == "export":
        export.export(model, target)
    elif stage == "judge":
        judge.run(run)
    elif stage == "evaluate":
        perform("fetch", run, None, target)
        return evaluate.run(run, target)
    return 0


def take_parts(finished: Path, run: Run) -> None:
    """What stages before `safety` leave, out of a finished model, unless they have run here.

    The image side is that of its safety checker.
    """
    for part in ("tokenizer", "text_encoder", "vae", "unet"):
        if not (run.model / part).is_dir():
            shutil.copytree(finished / part, run.model / part)
    if (run.folder / "clip-vision").is_dir():
        return
    checker = StableDiffusionSafetyChecker.from_pretrained(finished / "safety_checker", dtype=torch.float32)
    vision = CLIPVisionModelWithProjection(clip.vision_config())
    vision.load_state_dict({key: value for key, value in checker.state_dict().items() if key.startswith("vis")})
    vision.save_pretrained(run.folder / "clip-vision")


def _tokenizer(model: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(model / "tokenizer")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", nargs="+", choices=[*STAGES, "judge", "all"], help="'all' runs them in their order")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="shapes and lengths (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of this stage, in place of the preset's")
    parser.add_argument("--minutes", type=float, help="end this stage after so many, in place of the preset's")
    parser.add_argument(
        "--within", type=float, help="end the last stage of those given so many minutes after the start"
    )
    parser.add_argument("--parts", type=Path, help="a finished model that the results of other stages are taken from")
    parser.add_argument("--start", type=Path, help="a diffusers folder whose UNet's weights to go on from")
    parser.add_argument("--work", type=Path, help="folder for data and checkpoints (default: training/work)")
    parser.add_argument("--target", type=Path, default=EMBEDDED, help="the model that export writes (models/embedded)")
    options = parser.parse_args(argv)

    begin = time.monotonic()
    run = Run(PRESETS[options.preset], options.seed, device="cuda" if torch.cuda.is_available() else "cpu")
    if options.work:
        run = replace(run, folder=options.work)
    if options.parts:
        take_parts(options.parts, run)
    stages = STAGES if "all" in options.stage else options.stage
    if options.within and stages[-1] not in LONG:
        parser.error("--within ends the last stage early: name one that trains last.")
    for stage in stages:
        print(f"-- {stage}", flush=True)
        if stage in LONG and len(stages) == 1:
            run = run.with_length(stage, options.steps, options.minutes)
        if stage == stages[-1] and options.within:
            left = options.within - (time.monotonic() - begin) / 60
            run = run.with_length(stage, options.steps, max(0.1, left))
        status = perform(stage, run, options.start, options.target)
        print(f"-- {stage}: done after {time.monotonic() - begin:.0f} s", flush=True)
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
