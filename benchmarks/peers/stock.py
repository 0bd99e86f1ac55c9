"""The plain diffusers pipeline: `python -m benchmarks.peers.stock MODEL float32|bfloat16`."""

import sys

import torch
from diffusers import AutoPipelineForText2Image

from benchmarks.peers.lines import answer_with


def main() -> None:
    model, dtype = sys.argv[1:]
    pipeline = AutoPipelineForText2Image.from_pretrained(model, dtype=getattr(torch, dtype))
    if dtype == "bfloat16":  # with float32 it makes no difference
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    answer_with(pipeline)


if __name__ == "__main__":
    main()
