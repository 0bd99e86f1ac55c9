"""The plain diffusers pipeline in this process, and the parts of ours that can be seen without a server."""

from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import in_turns, ratio, row
from benchmarks.workload import text_to_image
from handlers.config import HandlerConfig
from handlers.engine.pipeline_job import PipelineJob
from handlers.forward.merging import forward, merge
from handlers.hardware.device import choose_dtype
from handlers.pipelines.loading import load_pipelines
from tests.support.paths import CONFIGS


class InProcess:
    """The pipeline of `model`, with as many torch threads as the server's workers have."""

    def __init__(self, model: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        cpu = torch.device("cpu")
        loaded = load_pipelines(model, ["txt2img"], cpu, choose_dtype("auto", cpu), HandlerConfig(), CONFIGS)
        self.pipeline = loaded["txt2img"]
        self._numbers = count()

    def generate(self, size: int, steps: int) -> Any:
        return self.pipeline(**self._arguments(size, steps))

    def coroutine_overhead(self, size: int, steps: int, rounds: int) -> None:
        """The pipeline as a coroutine against the pipeline called plainly."""

        def job() -> None:
            paused = self._job(size, steps)
            while paused.call is not None:
                paused.advance(forward(paused.call))

        jobs, plain = in_turns(rounds, job, lambda: self.generate(size, steps))
        row(
            f"pipeline as a coroutine, {size} px, in-process", f"{ratio(jobs, plain):.2f} × the pipeline called plainly"
        )

    def unet_gain(self, size: int, images: int, rounds: int) -> float:
        """How much quicker the bare UNet is with the rows of so many guided images at once than one by one."""
        jobs = [self._job(size, 20) for _ in range(images)]
        calls = [job.call for job in jobs if job.call is not None]
        merged = merge(calls)
        alone, together = in_turns(rounds, lambda: forward(calls[0]), lambda: forward(merged))
        for job in jobs:
            job.cancel()
        return images * ratio(alone, together)

    def _job(self, size: int, steps: int) -> PipelineJob:
        job = PipelineJob(self.pipeline, self._arguments(size, steps))
        job.start()
        return job

    def _arguments(self, size: int, steps: int) -> dict[str, Any]:
        fields = dict(text_to_image(size, steps, next(self._numbers)).fields)
        generator = torch.Generator().manual_seed(fields.pop("seed"))
        return fields | {"generator": generator}
