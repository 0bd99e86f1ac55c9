"""The plain pipeline with its UNet converted to OpenVINO, beside the same pipeline in torch; prints one line."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from diffusers import AutoPipelineForText2Image

from benchmarks.timing import in_turns, ratio

FEW, MANY = 5, 25  # steps: their difference leaves out what is done once a picture


class Bare(torch.nn.Module):
    """The UNet with the inputs that Stable Diffusion's pipeline gives it."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=states, return_dict=False)[0]


def compiled(unet: Any, threads: int) -> ov.CompiledModel:
    config = unet.config
    example = {
        "sample": torch.randn(2, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.tensor(999),
        "states": torch.randn(2, 77, config.cross_attention_dim),
    }
    with torch.no_grad():
        converted = ov.convert_model(Bare(unet), example_input=example)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    return ov.compile_model(converted, "CPU", settings)


def in_openvino(model: Path) -> Any:
    """The pipeline of `model` with its UNet's forward in OpenVINO."""
    pipeline = load(model)
    unet = compiled(pipeline.unet, torch.get_num_threads())

    def forward(sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        output = unet([sample.numpy(), timestep.numpy(), encoder_hidden_states.numpy()])[0]
        return (torch.from_numpy(output),)

    pipeline.unet.forward = forward
    return pipeline


def load(model: Path) -> Any:
    pipeline = AutoPipelineForText2Image.from_pretrained(model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, size: int, steps: int) -> np.ndarray:
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
        options.rounds, *(lambda p=p, s=s: draw(p, size, s) for s in (FEW, MANY) for p in pipelines)
    )
    own, eager = (
        [(b - a) / (MANY - FEW) for a, b in zip(*pair, strict=True)] for pair in ((few, many), (eager_few, eager_many))
    )
    apart = int(np.abs(draw(pipelines[0], size, FEW) - draw(pipelines[1], size, FEW)).max())
    print(
        f"{np.median(own) * 1000:.1f} ms a step, {ratio(own, eager):.2f} × torch eager "
        f"({np.median(eager) * 1000:.1f} ms); the picture at most {apart} of 255 apart"
    )


if __name__ == "__main__":
    main()
