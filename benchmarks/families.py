"""`python -m benchmarks.families`: mixed requests together against one by one, for each family with a transformer.

In this process and with tiny models, whose forwards are mostly Python's: it shows how often calls share a forward, and
why others do not, and nothing about the time of a real model.
"""

import argparse
import logging
import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import in_turns, ratio, row
from handlers.imaging.regions import Crop
from handlers.request.fields import GenerationRequest
from handlers.wire import TASKS
from tests.support import tiny_transformers
from tests.support.jobs import a_request, generated_alone, generated_together, load

GUIDANCE = (0.0, 1.0, 3.5, 7.0)


class Misses(logging.Handler):
    """Counts what tells calls apart, by the argument."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        causes = record.getMessage().partition(": ")[2].split("; ")
        self.counts.update(cause.partition(":")[0] for cause in causes)


def mixed(count: int, sizes: list[int]) -> list[GenerationRequest]:
    chance = random.Random(1)
    requests = []
    for number in range(count):
        request = a_request(
            chance.choice(TASKS), f"house {number:02}", number, chance.randint(8, 24), chance.choice(GUIDANCE)
        )
        size = (chance.choice(sizes), chance.choice(sizes))
        requests.append(replace(request, crops=(Crop.whole((64, 64), size),), strength=chance.uniform(0.5, 1)))
    return requests


def measure(family: str, pipelines: dict[str, Any], requests: list[GenerationRequest], rounds: int) -> None:
    merged = 0

    def together() -> None:
        nonlocal merged
        merged = generated_together(pipelines, requests)[1]

    alone, shared = in_turns(rounds, lambda: [generated_alone(pipelines, request) for request in requests], together)
    row(
        f"{family}, {len(requests)} requests together",
        f"{ratio(alone, shared):.2f} × one by one; {merged} shared forwards",
    )
    logger, misses = logging.getLogger("handlers.engine.scheduling"), Misses()
    logger.addHandler(misses)
    logger.setLevel(logging.DEBUG)
    together()
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(misses)
    told = ", ".join(f"{cause} {count}" for cause, count in misses.counts.most_common())
    row(f"{family}, pairs of signatures at a step that do not merge, by cause", told or "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", default=tiny_transformers.FAMILIES)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="of the sides, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for family in options.families:
        with tempfile.TemporaryDirectory() as folder:
            pipelines = load(tiny_transformers.save(family, Path(folder)))
            measure(family, pipelines, mixed(options.requests, options.sizes), options.rounds)


if __name__ == "__main__":
    main()
