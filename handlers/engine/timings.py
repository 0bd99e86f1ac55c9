"""Seconds by stage, for `GET /metrics`."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# modules of a pipeline, and the stage that their calls belong to
MODULES = {"text_encoder": "text", "text_encoder_2": "text", "text_encoder_3": "text", "safety_checker": "checker"}


class Timings:
    """Seconds since the start by stage: parse, text, unet, vae, checker, encode.

    On a GPU, stages that only queue work look shorter than they are, and those that wait for it look longer.
    """

    def __init__(self) -> None:
        self.reset()
        self._lock = threading.Lock()  # parsing and encoding run in several threads

    def reset(self) -> None:
        self.seconds = dict.fromkeys(("parse", "text", "unet", "vae", "checker", "encode"), 0.0)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._add(stage, time.perf_counter() - begin)

    def watch(self, pipeline: Any) -> None:
        """Times the calls of a pipeline's modules, except the denoiser, which the step batcher calls."""
        for name, stage in MODULES.items():
            self._watch_module(getattr(pipeline, name, None), stage)
        for name in ("encoder", "decoder"):
            self._watch_module(getattr(pipeline.vae, name, None), "vae")

    def _watch_module(self, module: Any, stage: str) -> None:
        if not isinstance(module, torch.nn.Module):
            return
        begun: list[float] = []  # one call at a time: one thread does all of torch's work
        module.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter()))
        # also if the call fails
        module.register_forward_hook(lambda *_: self._add(stage, time.perf_counter() - begun.pop()), always_call=True)

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self.seconds[stage] += seconds
