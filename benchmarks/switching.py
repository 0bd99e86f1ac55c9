"""`python -m benchmarks.switching`: a server that holds one of two models at a time, beside stock diffusers in turns.

It times an image of the model that is in memory, and one of the other model, which is loaded first. The same with the
stock pipeline in one process: the old one is deleted, the other one loaded. `--shape v1` has Stable Diffusion 1.5 in
its true shape, with random weights; without it, both are the embedded model.
"""

import argparse
import contextlib
import gc
import shutil
import tempfile
import threading
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import torch
from diffusers import AutoPipelineForText2Image
from diffusers.utils import logging

from benchmarks.timing import in_turns, ratio, row
from benchmarks.true_shapes import make
from tests.support.paths import EMBEDDED
from tests.support.running import HANG_S, Running, running, wait_for

STEPS = 4
NAMES = ("one", "other")


class Stock:
    """The stock pipeline of one model at a time, in this process."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._pipeline: Any = None

    def image(self, name: str | None = None) -> None:
        """An image of the model of this name, which is loaded first; without one, of the model that is there."""
        if name:
            self._pipeline = None
            gc.collect()
            self._pipeline = AutoPipelineForText2Image.from_pretrained(self._models / name, dtype=torch.float32)
            self._pipeline.set_progress_bar_config(disable=True)
        assert self._pipeline is not None
        with torch.no_grad():
            self._pipeline("a house", num_inference_steps=STEPS, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def most_memory(instance: Running) -> Iterator[list[int]]:
    """The most bytes of all workers together meanwhile (PSS, so that what they share counts once)."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            with contextlib.suppress(psutil.NoSuchProcess):
                most[0] = max(most[0], memory(instance))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def memory(instance: Running) -> int:
    return sum(worker.memory_full_info().pss for worker in instance.workers())


def offered(instance: Running) -> list[dict[str, Any]]:
    available: list[dict[str, Any]] = httpx.get(f"{instance.url}/models", timeout=HANG_S).json()["available"]
    return available


def measure(folder: Path, rounds: int) -> None:
    models, stock = folder / "models", Stock(folder / "models")
    options = ("--model", str(models / NAMES[0]), "--models-dir", str(models), "--max-models", "1", "--engine", "torch")
    with running(folder, *options, HF_HOME=str(folder / "hub")) as instance:
        wait_for(lambda: [model["state"] for model in offered(instance)] == ["ready"])
        names, stock_names = cycle(reversed(NAMES)), cycle(NAMES)

        def ask(name: str) -> None:
            instance.images("txt2img", model=name, num_inference_steps=STEPS, seed=1)

        last = NAMES[0]

        def switch() -> None:
            nonlocal last
            last = next(names)
            ask(last)

        held = memory(instance)
        with most_memory(instance) as most:
            switched, again, of_stock, of_stock_again = in_turns(
                rounds, switch, lambda: ask(last), lambda: stock.image(next(stock_names)), stock.image
            )
    row("server: an image of the model in memory, s", f"{median(again):.2f}")
    row("server: an image of the other one, s", f"{median(switched):.2f}")
    row("stock diffusers: an image of the model in memory, s", f"{median(of_stock_again):.2f}")
    row("stock diffusers: an image of the other one, s", f"{median(of_stock):.2f}")
    row("server / stock, of the other one", f"{ratio(switched, of_stock):.2f}")
    row("server: memory of the worker with one model, GB", f"{held / 1e9:.2f}")
    row("server: the most memory of all workers while it switches, GB", f"{most[0] / 1e9:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.switching", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", help="a folder of models/configs, such as v1 or xl_base; random weights")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            folder = Path(scratch, "models", name)
            if options.shape:
                make(folder, options.shape, torch.float32)
            else:
                shutil.copytree(EMBEDDED, folder)
        measure(Path(scratch), options.rounds)


if __name__ == "__main__":
    main()
