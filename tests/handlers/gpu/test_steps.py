"""Jobs on a GPU that is not there: the device of every tensor, and how often a step waits for it.

The stock pipelines run as they are, from the prompt to the image, through the engine's own batcher and decoder.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import MultiControlNetModel

from handlers.engine.pipeline_job import PipelineJob
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.controlnets import SUFFIXES, ControlNets, guided
from handlers.pipelines.named_files import NamedFiles
from handlers.pipelines.noise import generator
from handlers.pipelines.previews import fit_preview
from handlers.pipelines.schedulers import scheduler, schedulers
from handlers.request.control import Control
from handlers.request.samplers import Sampler
from handlers.wire import TASKS
from tests.support import tiny_models, tiny_transformers
from tests.support.fake_cuda import Card, fake_cuda
from tests.support.jobs import a_request, generated_alone, generated_together, load
from tests.support.networks import save_controlnet
from tests.support.samples import sample_image

pytestmark = pytest.mark.thorough
CUDA = torch.device("cuda")


@pytest.fixture
def card() -> Iterator[Card]:
    with fake_cuda() as card:
        yield card


class Watched:
    """Runs forwards, and keeps the waits before each one that has as many rows as the last: no job came or went."""

    def __init__(self, card: Card) -> None:
        self._card, self._rows, self._seen = card, 0, 0
        self.waits: list[list[str]] = []

    def __call__(self, call: DenoiserCall) -> Any:
        if call.rows == self._rows:
            self.waits.append([str(wait) for wait in self._card.waits[self._seen :]])
        self._rows, self._seen = call.rows, len(self._card.waits)
        return forward(call)


def difference(image: Any, other: Any) -> int:
    return int(np.abs(np.asarray(image, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, *tiny_transformers.FAMILIES])
def test_requests_that_share_their_steps_wait_for_nothing_between_two(family: str, tmp_path: Path) -> None:
    tasks = ["masking"] * 3 if family == "inpainting" else list(TASKS)
    folder = (tiny_models if family in tiny_models.FAMILIES else tiny_transformers).save(family, tmp_path)
    requests = [a_request(task, "a red apple BREAK a house", seed, 5 + seed, 7.5) for seed, task in enumerate(tasks)]
    on_cpu = load(folder, *dict.fromkeys(tasks))
    expected = [generated_alone(on_cpu, request) for request in requests]
    with fake_cuda() as card:
        watched = Watched(card)
        images, merged = generated_together(load(folder, *dict.fromkeys(tasks), device=CUDA), requests, watched)
    assert merged >= 3 and len(watched.waits) >= 3
    # in the first of those, a transformer fills its own tables, and the positions of a negative prompt are read
    later = watched.waits[family in tiny_transformers.FAMILIES :]
    # where an image ends, a step of two calls may go on with as many rows
    ends = ("decoder.py", "image_processor.py")
    assert not [wait for waits in later for wait in waits if not any(end in wait for end in ends)]
    for image, alone in zip(images, expected, strict=True):
        assert difference(image, alone) <= 2


@pytest.mark.parametrize("names", [["edges"], ["edges", "depth"]])
def test_so_it_is_with_controlnets(names: list[str], tmp_path: Path) -> None:
    model, nets = tiny_models.save("sd1", tmp_path / "model"), tmp_path / "nets"
    for seed, name in enumerate(names):
        save_controlnet(model, nets / name, seed)
    controls = tuple(Control(name, sample_image(64, 64), 0.8, 0.0, 1.0, "crop") for name in names)
    requests = [
        replace(a_request(task, "a house", seed, 5 + seed, 7.5), controls=controls) for seed, task in enumerate(TASKS)
    ]

    controlnets = ControlNets(NamedFiles(nets, SUFFIXES))

    def load_nets(pipeline: Any) -> list[Any]:
        return controlnets.load([*map(controlnets.file, names)], pipeline)

    def load_guided(device: torch.device) -> dict[str, Any]:
        return {task: guided(pipeline) for task, pipeline in load(model, device=device).items()}

    on_cpu = load_guided(torch.device("cpu"))
    for pipeline in on_cpu.values():
        loaded = load_nets(pipeline)
        pipeline.controlnet = loaded[0] if len(names) == 1 else MultiControlNetModel(loaded)
    expected = [generated_alone(on_cpu, request) for request in requests]
    with fake_cuda() as card:
        watched = Watched(card)
        images, merged = generated_together(load_guided(CUDA), requests, watched, load_nets=load_nets)
    assert merged >= 3 and len(watched.waits) >= 6
    ends = ("decoder.py", "image_processor.py")
    assert not [wait for waits in watched.waits for wait in waits if not any(end in wait for end in ends)]
    for image, alone in zip(images, expected, strict=True):
        assert difference(image, alone) <= 2


@pytest.mark.parametrize(
    ("family", "dtype"), [("sd1", torch.float16), ("sdxl", torch.float16), ("sd1", torch.bfloat16)]
)
def test_so_it_is_in_half_precision(family: str, dtype: torch.dtype, card: Card, tmp_path: Path) -> None:
    pipelines = load(tiny_models.save(family, tmp_path), device=CUDA, dtype=dtype)
    requests = [a_request(task, "a red apple", seed, 4, 7.5) for seed, task in enumerate(TASKS)]
    watched = Watched(card)
    images, _ = generated_together(pipelines, requests, watched)
    assert pipelines["txt2img"].unet.dtype == dtype and len(images) == len(requests)
    assert watched.waits and not any(watched.waits), watched.waits


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers, in NumPy
def test_no_scheduler_waits_between_two_steps(tmp_path: Path) -> None:
    """Masking has the most to do: it puts the noise of each step on what it keeps of the image."""
    folder = tiny_models.save("sd1", tmp_path)
    request = a_request("masking", "a red apple", 1, 4, 7.5)

    def generated(pipeline: Any, name: str, watched: Any) -> Any:
        arguments = pipeline_arguments(request, pipeline, request.crops[0]) | {"generator": generator(1), "eta": 0.5}
        job = PipelineJob(pipeline, arguments, scheduler(pipeline, Sampler(name, {}, name)))
        job.start()
        while job.call is not None:
            job.advance(watched(job.call) if isinstance(job.call, DenoiserCall) else forward(job.call))
        assert job.error is None, name
        return job.result.images[0]

    pipeline = load(folder, "masking")["masking"]
    expected = {name: generated(pipeline, name, forward) for name in schedulers(pipeline)}
    waits: dict[str, list[str]] = {}
    with fake_cuda() as card:
        pipeline = load(folder, "masking", device=CUDA)["masking"]
        for name, image in expected.items():
            watched = Watched(card)
            assert difference(generated(pipeline, name, watched), image) <= 2, name
            waits[name] = [wait for step in watched.waits for wait in step]
    assert len(waits) >= 12
    copies = waits.pop("UniPCMultistepScheduler")  # it computes its coefficients on the GPU
    assert copies and all("scheduling_unipc_multistep.py" in wait for wait in copies)
    assert not any(waits.values()), waits


@pytest.mark.parametrize(("task", "waits"), [("txt2img", 3), ("img2img", 5), ("masking", 8)])
def test_a_start_waits_for_what_it_takes_to_the_gpu(task: str, waits: int, card: Card, tmp_path: Path) -> None:
    """Its tokens, noise, image and mask: each of them once. They come from memory that is not pinned."""
    pipeline = load(tiny_models.save("sd1", tmp_path), task, device=CUDA)[task]
    request = a_request(task, "a red apple", 1, 4, 7.5)
    job = PipelineJob(pipeline, pipeline_arguments(request, pipeline, request.crops[0]) | {"generator": generator(1)})
    card.waits.clear()
    job.start()
    assert Counter(wait.operation for wait in card.waits) == {"a copy to the GPU": waits}
    job.cancel()


def test_a_preview_is_on_its_way_while_the_steps_go_on(tmp_path: Path) -> None:
    from tests.support.fake_streams import fake_gpu

    folder = tiny_models.save("sd1", tmp_path)

    def first_step(pipeline: Any) -> tuple[Any, Any]:
        arguments = {"prompt": "a house", "num_inference_steps": 3, "generator": generator(1)}
        job = PipelineJob(pipeline, arguments)
        job.start()
        assert isinstance(job.call, DenoiserCall)
        call = job.call
        job.cancel()
        return call, forward(call)

    pipeline = load(folder, "txt2img")["txt2img"]
    on_cpu = fit_preview(pipeline)
    assert on_cpu is not None
    expected = on_cpu.render(on_cpu.look(*first_step(pipeline), 7.5))
    with fake_gpu() as card:
        pipeline = load(folder, "txt2img", device=CUDA)["txt2img"]
        preview_map = fit_preview(pipeline)
        assert preview_map is not None
        step = first_step(pipeline)
        card.waits.clear()
        look = preview_map.look(*step, 7.5)
        assert not card.waits and (look.latents == 99).all()  # the numbers have not arrived
        assert len(preview_map.render(look)) == len(expected) and (look.latents != 99).any()
