"""What all requests of a worker have in common."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from handlers.config import HandlerConfig
from handlers.engine.finishing import Provenance
from handlers.engine.large_images import LargeImages
from handlers.engine.timings import Timings
from handlers.hardware.memory import Memory
from handlers.pipelines.controlnets import ControlNets
from handlers.pipelines.named_files import NO_FILES
from handlers.pipelines.upscalers import Upscalers


@dataclass(frozen=True)
class Shared:
    """Built once, by the worker.

    Attributes:
        pool: for what must not hold up the step: parsing and encoding.
        large: the same for requests with large images.
        timings: told how long parsing and encoding take.
        clock: seconds since the epoch, as deadlines are.
        provenance: what an answer's file says about its origin.
        upscalers, controlnets: those that requests may name.
    """

    config: HandlerConfig
    memory: Memory
    pool: ThreadPoolExecutor
    timings: Timings
    clock: Callable[[], float] = time.time
    provenance: Provenance = field(default_factory=Provenance)
    upscalers: Upscalers = field(default_factory=lambda: Upscalers(NO_FILES, torch.device("cpu"), 0))
    controlnets: ControlNets = field(default_factory=ControlNets)
    large: LargeImages = field(default_factory=lambda: LargeImages(HandlerConfig.max_open_pixels))
