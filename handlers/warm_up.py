"""A first small picture with each pipeline when a worker starts: that it draws, how fast, and in how much memory."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from handlers.device import Peak
from handlers.errors import ModelError
from handlers.generation import generator, pipeline_arguments
from handlers.pipeline_job import PipelineJob
from handlers.request import GenerationRequest, ModelDefaults
from handlers.step_batcher import forward

STEPS = 3


@dataclass
class Measured:
    """What a model was seen to need at its native size: seconds and bytes of a UNet row, bytes of a decoding."""

    seconds_per_row: float = math.inf
    row_bytes: int = 0
    image_bytes: int = 0


def warm_up(pipelines: Mapping[str, Any], defaults: ModelDefaults, device: torch.device) -> Measured:
    """Runs each pipeline for a few steps at its native size.

    Raises ModelError if the model loads but cannot draw.
    """
    measured = Measured()
    for task, pipeline in pipelines.items():
        arguments = pipeline_arguments(_request(task, defaults), pipeline)
        job = PipelineJob(pipeline, {**arguments, "generator": generator(1)})
        job.start()
        while job.call is not None:
            rows, begin = job.call.rows, time.perf_counter()
            with Peak(device) as peak:
                output = forward(job.call)
                output[0].cpu()  # waits for the device
            # the first ones are slow
            measured.seconds_per_row = min(measured.seconds_per_row, (time.perf_counter() - begin) / rows)
            measured.row_bytes = max(measured.row_bytes, peak.bytes // rows)
            with Peak(device) as peak:
                job.advance(output)
            measured.image_bytes = max(measured.image_bytes, peak.bytes)
        if job.error is not None:
            raise ModelError(f"The model loads, but its {task} pipeline cannot draw: {job.error}") from job.error
    return measured


def _request(task: str, defaults: ModelDefaults) -> GenerationRequest:
    size = defaults.width, defaults.height
    return GenerationRequest(
        task, prompt="", negative_prompt="", seed=1, num_outputs=1, num_inference_steps=STEPS,
        guidance_scale=defaults.guidance_scale, eta=0.0, width=size[0], height=size[1], answer_size=size,
        init_image=None if task == "txt2img" else Image.new("RGB", size, "grey"),
        mask_image=Image.new("L", size, 255) if task == "masking" else None,
    )  # fmt: skip
