"""The plain pipeline with its UNet in OpenVINO, as `--engine openvino` has it, beside torch's; prints one line."""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image

from admin.paths import HOME
from benchmarks.timing import in_turns, ratio
from handlers.forward.calls import DenoiserCall
from handlers.forward.conversions import Converter
from handlers.forward.openvino import OpenVINOForward
from handlers.installation import Installation

FEW, MANY = 5, 25  # steps: their difference leaves out what is done once an image


class Through:
    """The UNet with its forward in OpenVINO."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet
        folder = Installation(HOME, os.environ).conversions
        self._run = OpenVINOForward(Converter(torch.get_num_threads(), "float32", folder))

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> Any:
        return self._run(DenoiserCall.of(self._unet, (sample, timestep), kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def in_openvino(model: Path) -> Any:
    """The pipeline of `model` with its UNet's forward in OpenVINO."""
    pipeline = load(model)
    pipeline.__dict__["unet"] = Through(pipeline.unet)  # past DiffusionPipeline.__setattr__
    return pipeline


def load(model: Path) -> Any:
    pipeline = AutoPipelineForText2Image.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: Any, size: int, steps: int) -> np.ndarray:
    image = pipeline(
        prompt="a red apple", num_inference_steps=steps, guidance_scale=3.5, width=size, height=size,
        generator=torch.Generator().manual_seed(1),
    ).images[0]  # fmt: skip
    return np.asarray(image).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("size", type=int, help="pixels")
    parser.add_argument("rounds", type=int)
    options = parser.parse_args()
    size, pipelines = options.size, (in_openvino(options.model), load(options.model))
    few, eager_few, many, eager_many = in_turns(
        options.rounds, *(lambda p=p, s=s: generate(p, size, s) for s in (FEW, MANY) for p in pipelines)
    )
    own, eager = (
        [(b - a) / (MANY - FEW) for a, b in zip(*pair, strict=True)] for pair in ((few, many), (eager_few, eager_many))
    )
    apart = int(np.abs(generate(pipelines[0], size, FEW) - generate(pipelines[1], size, FEW)).max())
    print(
        f"{np.median(own) * 1000:.1f} ms a step, {ratio(own, eager):.2f} × torch eager "
        f"({np.median(eager) * 1000:.1f} ms); the image at most {apart} of 255 apart"
    )


if __name__ == "__main__":
    main()
