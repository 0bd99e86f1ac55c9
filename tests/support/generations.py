"""One open request without an engine or a model: the test runs the pool's work, moves the clock and steps the jobs."""

import base64
import io
import json
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from handlers.config import HandlerConfig
from handlers.engine.generation import Generation, GenerationState
from handlers.engine.parsing import IncomingRequest
from handlers.engine.shared import Shared
from handlers.engine.timings import Timings
from handlers.forward.calls import DecodeCall
from handlers.hardware.memory import Memory
from handlers.pipelines.loading import ServedPipeline
from handlers.request.fields import ModelDefaults
from handlers.wire import Failed, Progress, RequestHead, Result, read_line
from tests.support.clock import Clock
from tests.support.jobs import CPU

PARSING, RUNNING, ENCODING, ENDED = GenerationState
SIDE, STEPS = 64, 3


class Pool(ThreadPoolExecutor):
    """Holds its work until the test runs it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []
        self.has_run = 0

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: work(*arguments, **options)))
        return future

    def begin(self, index: int = 0) -> Callable[[], None]:
        """Begins a piece of work as a thread would, so that it cannot be cancelled any more. Returns the rest of it."""
        future, work = self.waiting.pop(index)
        if not future.set_running_or_notify_cancel():
            return lambda: None

        def finish() -> None:
            self.has_run += 1
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        return finish

    def run(self, index: int = 0) -> None:
        self.begin(index)()

    def run_all(self) -> None:
        while self.waiting:
            self.run()


class UNet:
    def forward(self, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        raise NotImplementedError  # a job pauses instead


class Pipeline:
    """Calls its UNet and its VAE as stock pipelines do. The image has one colour, whose red is the seed.

    Args:
        refusal: raised before the first step.
        fault: raised after the first step.
    """

    vae_scale_factor = 8
    num_timesteps = 0

    def __init__(self, refusal: BaseException | None = None, fault: BaseException | None = None) -> None:
        self.refusal, self.fault = refusal, fault
        self.unet = UNet()
        self.vae = SimpleNamespace(dtype=torch.float32, encode=None, decode=None)
        self.scheduler = SimpleNamespace(set_timesteps=lambda *_, **__: None)

    def __call__(self, prompt: str, num_inference_steps: int, width: int, height: int, generator: Any) -> Any:
        if self.refusal:
            raise self.refusal
        self.num_timesteps = num_inference_steps
        latents = torch.zeros(1, 4, height // 8, width // 8)
        for step in range(num_inference_steps):
            latents = self.unet(latents, step)  # type: ignore[operator]
            if self.fault:
                raise self.fault
        self.vae.decode(latents)
        image = Image.new("RGB", (width, height), (generator.initial_seed(), 0, 0))
        return SimpleNamespace(images=[image], nsfw_content_detected=[False])


class Bench:
    """Opens generations on one pool and one clock, and steps their jobs as the engine does."""

    def __init__(self) -> None:
        self.pool, self.clock = Pool(), Clock()
        self.memory = Memory(CPU, (SIDE // 8) ** 2)
        self.announced: list[GenerationState] = []  # the state at each announcement of the pool

    def make(
        self,
        pipeline: Any = None,
        deadline: float = math.inf,
        progress: bool = False,
        preview_map: Any = None,
        img2img: Any = None,
        **fields: Any,
    ) -> Generation:
        data = {name: str(value).encode() for name, value in ({"prompt": "a house", "seed": 7} | fields).items()}
        head = RequestHead("txt2img", request_id="r", deadline=deadline, wants_progress=progress)
        defaults = ModelDefaults(num_inference_steps=STEPS, width=SIDE, height=SIDE)
        served = ServedPipeline("a model", pipeline or Pipeline(), defaults, (), dict, preview_map, img2img=img2img)
        shared = Shared(HandlerConfig(), self.memory, self.pool, Timings(), self.clock)
        return Generation(IncomingRequest("txt2img", data, head), served, shared)

    def open(self, *arguments: Any, **options: Any) -> Generation:
        generation = self.make(*arguments, **options)
        generation.start(lambda announced: self.announced.append(announced.state))
        return generation

    def opened_in(self, state: GenerationState, **options: Any) -> Generation:
        """A generation that has come to `state`; its next work for the pool is not done yet."""
        generation = self.open(**options)
        if state in (RUNNING, ENCODING, ENDED):
            self.pool.run_all()
            generation.collect()
        if state in (ENCODING, ENDED):
            while generation.state is RUNNING:
                step(generation)
        if state is ENDED:
            self.pool.run_all()
        assert generation.state is state
        return generation


def advance(slot: Any) -> None:
    """Starts a job, or answers the call that it is paused at."""
    job = slot.job
    if not job.started:
        job.start()
    elif not job.ended:
        job.advance((job.call.sample,) if isinstance(job.call, DecodeCall) else job.call.sample.clone())


def step(generation: Generation) -> None:
    """Each job runs on to its next pause."""
    for slot in list(generation.slots):
        advance(slot)
    generation.collect()


def message(generation: Generation) -> Progress | Result | Failed | None:
    assert generation.ending is not None
    return read_line(generation.ending)


def images_of(generation: Generation) -> list[dict[str, Any]]:
    result = message(generation)
    assert isinstance(result, Result)
    images: list[dict[str, Any]] = json.loads(result.body)["images"]
    return images


def red_of(image: dict[str, Any]) -> int:
    return int(np.asarray(Image.open(io.BytesIO(base64.b64decode(image["base64"]))))[0, 0, 0])


def steps_told(generation: Generation) -> list[tuple[int, int]]:
    lines = [read_line(line) for line in generation.progress().splitlines()]
    return [(line.step, line.of) for line in lines if isinstance(line, Progress)]
