"""What all requests of a worker have in common."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from handlers.config import HandlerConfig
from handlers.engine.finishing import Provenance
from handlers.engine.large_images import LargeImages
from handlers.engine.timings import Timings
from handlers.hardware.memory import Memory


@dataclass(frozen=True)
class Shared:
    """Built once, by the worker.

    Attributes:
        pool: for what must not hold up the step: parsing and encoding.
        large: the same for requests with large images.
        timings: told how long parsing and encoding take.
        clock: seconds since the epoch, as deadlines are.
        provenance: what an answer's file says about its origin.
    """

    config: HandlerConfig
    memory: Memory
    pool: ThreadPoolExecutor
    timings: Timings
    clock: Callable[[], float] = time.time
    provenance: Provenance = field(default_factory=Provenance)
    large: LargeImages = field(default_factory=lambda: LargeImages(HandlerConfig.max_open_pixels))
