"""A first small picture with each pipeline when a worker starts: shows that the model draws, and how fast."""

import time
from collections.abc import Mapping
from typing import Any

from PIL import Image

from handlers.errors import ModelError
from handlers.generation import generator, pipeline_arguments
from handlers.pipeline_job import PipelineJob
from handlers.request import GenerationRequest, ModelDefaults
from handlers.step_batcher import forward

STEPS = 3


def warm_up(pipelines: Mapping[str, Any], defaults: ModelDefaults) -> float:
    """Runs each pipeline for a few steps at its native size. Returns the seconds of a UNet row.

    Raises ModelError if the model loads but cannot draw.
    """
    seconds_per_row = float("inf")
    for task, pipeline in pipelines.items():
        job = PipelineJob(pipeline, {**pipeline_arguments(_request(task, defaults)), "generator": generator(1)})
        job.start()
        while job.call is not None:
            rows, begin = job.call.rows, time.perf_counter()
            output = forward(job.call)
            output[0].cpu()  # waits for the device
            seconds_per_row = min(seconds_per_row, (time.perf_counter() - begin) / rows)  # the first ones are slow
            job.advance(output)
        if job.error is not None:
            raise ModelError(f"The model loads, but its {task} pipeline cannot draw: {job.error}") from job.error
    return seconds_per_row


def _request(task: str, defaults: ModelDefaults) -> GenerationRequest:
    size = defaults.width, defaults.height
    return GenerationRequest(
        task, prompt="", negative_prompt="", seed=1, num_outputs=1, num_inference_steps=STEPS,
        guidance_scale=defaults.guidance_scale, eta=0.0, width=size[0], height=size[1], answer_size=size,
        init_image=None if task == "txt2img" else Image.new("RGB", size, "grey"),
        mask_image=Image.new("L", size, 255) if task == "masking" else None,
    )  # fmt: skip
