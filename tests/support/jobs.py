"""Jobs without an engine: the images of requests together, and of the stock pipeline alone."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from handlers.config import HandlerConfig
from handlers.engine.decoder import Decoder
from handlers.engine.pipeline_job import PipelineJob
from handlers.engine.scheduling import Slot
from handlers.engine.step_batcher import RowLimit, StepBatcher
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.forward.side_stream import NoSideStream
from handlers.hardware.memory import Memory
from handlers.imaging.documents import Document
from handlers.imaging.regions import Crop
from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.embeddings import Embeddings
from handlers.pipelines.loading import load_pipelines
from handlers.pipelines.loras import Loras
from handlers.pipelines.noise import generator
from handlers.pipelines.plain_prompts import prompts_for
from handlers.request.fields import GenerationRequest
from handlers.wire import TASKS
from tests.support.paths import CONFIGS
from tests.support.samples import sample_image

CPU = torch.device("cpu")


def load(
    path: Path,
    *tasks: str,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    **config: Any,
) -> dict[str, Any]:
    return load_pipelines(path, tasks or TASKS, device, dtype, HandlerConfig(**config), CONFIGS, channels_last)


def a_request(task: str, prompt: str, seed: int, steps: int, guidance_scale: float) -> GenerationRequest:
    return GenerationRequest(
        task=task, prompt=prompt, negative_prompt="blurred", seed=seed, num_outputs=1, num_inference_steps=steps,
        guidance_scale=guidance_scale, eta=0.0, width=64, height=64, answer_size=(64, 64), strength=0.8,
        init_image=Document(sample_image(64, 64)) if task != "txt2img" else None,
        mask_image=Image.linear_gradient("L").resize((64, 64)) if task == "masking" else None,
        crops=(Crop.whole((64, 64), (64, 64)),),
    )  # fmt: skip


def generated_together(
    pipelines: Mapping[str, Any],
    requests: list[GenerationRequest],
    run: Callable[[DenoiserCall], Any] = forward,
    loras: Loras | None = None,
    embeddings: Embeddings | None = None,
    load_nets: Callable[[Any], Sequence[Any]] | None = None,
) -> tuple[list[Image.Image], int]:
    """The images of jobs that share their forwards, and how many forwards served several of them."""
    batcher = StepBatcher(RowLimit(1.0, learns=False, fixed=32), Memory(CPU, 64), run)
    slots = []
    for request in requests:
        pipeline = pipelines[request.task]
        arguments = _arguments(request, pipeline)
        prompts = prompts_for(pipeline, request.prompt, request.negative_prompt, embeddings)
        parts: dict[str, Any] = {"lend": partial(loras.lend, loras.choose(prompts.loras)[0])} if loras else {}
        parts |= {"load_nets": partial(load_nets, pipeline)} if load_nets else {}
        slots.append(Slot(PipelineJob(pipeline, arguments, None, prompts, **parts), SimpleNamespace(last_step=0)))
        slots[-1].job.start()
    decoder = Decoder(batcher.memory, NoSideStream())
    while not all(slot.job.ended for slot in slots):
        for slot, outcome in batcher.step([slot for slot in slots if slot.waits_for_denoiser]):
            assert not isinstance(outcome, Exception), outcome
            slot.job.advance(outcome)
        decoder.decode_some(slots, may_wait=True)
    assert [slot.job.error for slot in slots] == [None] * len(slots)
    return [slot.job.result.images[0] for slot in slots], batcher.activity.merged_forwards


def _arguments(request: GenerationRequest, pipeline: Any) -> dict[str, Any]:
    crop = request.crops[0]
    guides = [control.of_crops(request.answer_size, [crop])[0] for control in request.controls]
    return pipeline_arguments(request, pipeline, crop, guides) | {"generator": generator(request.seed)}


def generated_alone(pipelines: Mapping[str, Any], request: GenerationRequest) -> Image.Image:
    """What the stock pipeline generates, called plainly."""
    pipeline = pipelines[request.task]
    arguments = _arguments(request, pipeline)
    with torch.no_grad():
        arguments = prompts_for(pipeline, request.prompt, request.negative_prompt).arguments_for(pipeline, arguments)
    image: Image.Image = pipeline(**arguments).images[0]
    return image
