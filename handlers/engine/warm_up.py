"""A worker's first image with each pipeline: whether it works, how fast, and with how much memory."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from handlers.engine.pipeline_job import PipelineJob
from handlers.errors import ModelError
from handlers.forward.calls import DecodeCall, DenoiserCall
from handlers.forward.merging import forward
from handlers.hardware.device import Peak, first_size
from handlers.imaging.documents import Document
from handlers.imaging.regions import Crop
from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.loading import ServedPipeline
from handlers.pipelines.noise import generator
from handlers.request.fields import GenerationRequest

STEPS = 3


@dataclass
class Measured:
    """What an image of `native_area` latent pixels was seen to need: for a row of a forward, and after its last step.

    `call` is one of the denoiser's calls of the first task.
    """

    native_area: int
    call: DenoiserCall | None = None
    seconds_per_row: float = math.inf
    image_seconds: float = math.inf
    row_bytes: int = 0
    image_bytes: int = 0


def warm_up(
    served: Mapping[str, ServedPipeline], device: torch.device, run: Callable[[DenoiserCall], Any] = forward
) -> Measured:
    """Runs each task's pipeline for a few steps, at its native size if the device is fast enough for that.

    `run` is what will run the denoiser's calls.

    Returns the largest needs, for an image of the first task's native size. Raises ModelError if a model loads but
    cannot generate.
    """
    measured = Measured(next(iter(served.values())).native_area)
    for task, one in served.items():
        pipeline, defaults = one.pipeline, one.defaults
        size = first_size(device, defaults.width, defaults.height)
        share = size[0] * size[1] / pipeline.vae_scale_factor**2 / measured.native_area
        request = _request(task, size, defaults.guidance_scale)
        arguments = pipeline_arguments(request, pipeline, Crop.whole(size, size))
        job = PipelineJob(pipeline, {**arguments, "generator": generator(1)})
        job.start()
        while (call := job.call) is not None:
            begin = time.perf_counter()
            with Peak(device) as peak:
                output = run(call) if isinstance(call, DenoiserCall) else forward(call)
                next(iter(output[0])).cpu()  # this waits for the device
            seconds = time.perf_counter() - begin
            if isinstance(call, DenoiserCall):
                measured.call = measured.call or call
                # the first calls are slow
                measured.seconds_per_row = min(measured.seconds_per_row, seconds / call.rows / share)
                measured.row_bytes = max(measured.row_bytes, int(peak.bytes / call.rows / share))
            else:
                measured.image_bytes = max(measured.image_bytes, int(peak.bytes / share))
            begin = time.perf_counter()
            with Peak(device) as peak:
                job.advance(output)
            if isinstance(call, DecodeCall):
                seconds += time.perf_counter() - begin
                measured.image_seconds = min(measured.image_seconds, seconds / share)
            measured.image_bytes = max(measured.image_bytes, int(peak.bytes / share))
        if job.error is not None:
            raise ModelError(f"The model loads, but its {task} pipeline cannot generate: {job.error}") from job.error
    return measured


def _request(task: str, size: tuple[int, int], guidance_scale: float) -> GenerationRequest:
    return GenerationRequest(
        task=task, prompt="", negative_prompt="", seed=1, num_outputs=1, num_inference_steps=STEPS,
        guidance_scale=guidance_scale, eta=0.0, width=size[0], height=size[1], answer_size=size,
        init_image=None if task == "txt2img" else Document(Image.new("RGB", size, "grey")),
        mask_image=Image.new("L", size, 255) if task == "masking" else None,
    )  # fmt: skip
