"""Whose images are decoded together, and what goes on meanwhile on a device that works by itself."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from handlers.config import HandlerConfig
from handlers.engine.decoder import AREA, Decoder
from handlers.engine.pipeline_job import PipelineJob
from handlers.engine.scheduling import Slot
from handlers.engine.upscale_job import UpscaleJob
from handlers.errors import NotFinite
from handlers.forward.calls import DecodeCall, UpscaleCall
from handlers.forward.merging import forward
from handlers.forward.side_stream import NoSideStream
from handlers.hardware.memory import Memory
from handlers.pipelines.loading import load_pipelines
from tests.support import tiny_models
from tests.support.jobs import (
    CPU,
    a_request,
    generated_alone,
    generated_together,
    generator,
    load,
    pipeline_arguments,
)

SIDE = int(AREA**0.5)


class AutoencoderKL:
    """Images that tell of their latents, and the shapes it was called with. It has no room for `too_many`."""

    dtype = torch.float32

    def __init__(self, too_many: int = 100) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.too_many = too_many

    def decode(self, latents: torch.Tensor, return_dict: bool, generator: Any = None, **_: Any) -> tuple[torch.Tensor]:
        self.shapes.append(tuple(latents.shape))
        if len(latents) >= self.too_many:
            raise torch.OutOfMemoryError("no room")
        return (latents * 2,)


class Job:
    """A job that waits for the VAE, and remembers what it got."""

    def __init__(self, call: DecodeCall) -> None:
        self.call: DecodeCall | None = call
        self.ended, self.error, self.output = False, None, None

    def advance(self, output: Any) -> None:
        self.call, self.ended, self.output = None, True, output

    def cancel(self, error: Any = None) -> None:
        if not self.ended:
            self.call, self.ended, self.error = None, True, error


def slot(vae: Any, value: float = 1.0, side: int = 8, **kwargs: Any) -> Any:
    latents = torch.full((1, 4, side, side), value)
    call = DecodeCall(vae, latents, {"return_dict": False, "generator": torch.Generator()} | kwargs)
    return Slot(Job(call), SimpleNamespace(last_step=0))  # type: ignore[arg-type]


def decoder(stream: Any = None) -> Decoder:
    return Decoder(Memory(CPU, 64), stream or NoSideStream())


def test_images_of_one_size_are_decoded_in_one_call() -> None:
    vae = AutoencoderKL()
    slots = [slot(vae, value) for value in (1.0, 2.0, 3.0)]
    decoder().decode_some(slots, may_wait=False)
    assert vae.shapes == [(3, 4, 8, 8)]
    assert [float(each.job.output[0].mean()) for each in slots] == [2.0, 4.0, 6.0]


def test_large_images_and_those_of_their_own_kind_are_decoded_alone_in_turns() -> None:
    vae = AutoencoderKL()
    slots = [slot(vae, side=SIDE), slot(vae, side=SIDE), slot(vae, mask=torch.ones(1)), slot(vae, side=2 * SIDE)]
    one = decoder()
    for done in range(1, 5):
        one.decode_some(slots, may_wait=False)
        assert sum(each.job.ended for each in slots) == done
    assert {shape[0] for shape in vae.shapes} == {1}


def test_tiles_and_images_take_turns() -> None:
    """An image that is enlarged has many tiles, and no steps in between that would put it behind the others."""
    seen: list[str] = []

    def tile(name: str) -> Any:
        def work() -> Generator[UpscaleCall, Any, None]:
            for _ in range(3):
                yield UpscaleCall(lambda sample: seen.append(name) or sample, torch.ones(1, 3, 8, 8))

        waits = Slot(UpscaleJob(work(), 3), SimpleNamespace(last_step=0))
        waits.job.start()
        return waits

    image = slot(AutoencoderKL())
    image.owner.last_step = 7
    slots = [tile("one"), image, tile("other")]
    one = decoder()
    for _ in range(7):
        one.decode_some([each for each in slots if not each.job.ended], may_wait=True)
        seen += ["image"] if image.job.ended and "image" not in seen else []
    assert seen == ["one", "other", "image", "one", "other", "one", "other"]
    assert all(each.job.ended and each.job.error is None for each in slots)


def test_a_vae_that_generates_by_chance_gets_each_generator_alone() -> None:
    class ConsistencyDecoderVAE(AutoencoderKL):
        pass

    vae = ConsistencyDecoderVAE()
    slots = [slot(vae), slot(vae)]
    decoder().decode_some(slots, may_wait=False)
    assert vae.shapes == [(1, 4, 8, 8)] and [each.job.ended for each in slots] == [True, False]


def test_what_has_no_room_together_is_decoded_one_by_one() -> None:
    vae = AutoencoderKL(too_many=2)
    slots = [slot(vae), slot(vae)]
    decoder().decode_some(slots, may_wait=False)
    assert [shape[0] for shape in vae.shapes] == [2, 1, 1]
    assert all(each.job.output is not None for each in slots)


def test_numbers_that_overflow_end_their_job_alone() -> None:
    vae = AutoencoderKL()
    slots = [slot(vae), slot(vae, value=float("nan"))]
    decoder().decode_some(slots, may_wait=False)
    assert slots[0].job.output is not None and isinstance(slots[1].job.error, NotFinite)


class Slow:
    """A stream whose work is done when it is said to be, or waited for."""

    def __init__(self) -> None:
        self.done, self.waited, self.said = False, 0, []  # type: ignore[var-annotated]

    def wait(self) -> None:
        self.said.append("waits")

    @contextmanager
    def active(self) -> Iterator[None]:
        self.said.append("active")
        yield

    def record(self) -> "Slow":
        return self

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited += not self.done


def test_steps_go_on_while_a_gpu_decodes() -> None:
    vae, stream = AutoencoderKL(), Slow()
    one, slots = decoder(stream), [slot(vae), slot(vae)]
    one.decode_some(slots[:1], may_wait=False)
    one.decode_some(slots, may_wait=False)  # the second one has to wait for its turn
    assert stream.said == ["waits", "active"] and not slots[0].job.ended and vae.shapes == [(1, 4, 8, 8)]
    stream.done = True
    one.decode_some(slots, may_wait=False)
    assert slots[0].job.output is not None and len(vae.shapes) == 2 and stream.waited == 0


def test_with_nothing_else_to_do_it_waits_for_the_gpu() -> None:
    stream, waiting = Slow(), slot(AutoencoderKL())
    decoder(stream).decode_some([waiting], may_wait=True)
    assert waiting.job.output is not None and stream.waited == 1


def test_a_job_cancelled_while_a_gpu_decodes_stays_as_it_is() -> None:
    stream, gone = Slow(), slot(AutoencoderKL())
    one = decoder(stream)
    one.decode_some([gone], may_wait=False)
    gone.job.cancel()
    stream.done = True
    one.decode_some([], may_wait=False)
    assert gone.job.output is None


def test_images_decoded_together_are_those_of_the_plain_pipeline(pipelines: dict[str, Any]) -> None:
    requests = [a_request("txt2img", prompt, seed, 3, 3.5) for seed, prompt in enumerate(("a house", "a cat"), 1)]
    together, _ = generated_together(pipelines, requests)
    for image, request in zip(together, requests, strict=True):
        alone = np.asarray(generated_alone(pipelines, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_vae_of_sdxl_serves_a_start_while_another_waits_for_it(dtype: torch.dtype, tmp_path: Path) -> None:
    """Its pipelines turn it to float32 and back around their calls."""
    model = tiny_models.save("sdxl", tmp_path)
    tasks = ["txt2img", "img2img"]
    pipelines = load_pipelines(model, tasks, CPU, dtype, HandlerConfig(), tmp_path)
    plain = load(model)
    requests = [a_request(task, "a house", 1, 2, 3.5) for task in tasks]
    jobs = []
    for request in requests:
        pipeline = pipelines[request.task]
        jobs.append(
            PipelineJob(pipeline, pipeline_arguments(request, pipeline, request.crops[0]) | {"generator": generator(1)})
        )
        jobs[-1].start()
        while jobs[-1].call is not None and not isinstance(jobs[-1].call, DecodeCall):
            jobs[-1].advance(forward(jobs[-1].call))
    for job, request in zip(jobs, requests, strict=True):
        assert isinstance(job.call, DecodeCall), job.error
        assert job.call.vae.dtype == torch.float32
        job.advance(forward(job.call))
        assert job.error is None
        alone = np.asarray(generated_alone(plain, request), dtype=int)
        assert np.abs(np.asarray(job.result.images[0], dtype=int) - alone).mean() < 6
