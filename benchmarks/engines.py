"""Seconds of Stable Diffusion on a CPU, by engine: `python -m benchmarks.engines`, a table on standard output.

The model has the true shapes of Stable Diffusion 1.5 with random weights, and Euler's scheduler. Each engine runs in a
process of its own with as many threads, in turns with plain diffusers; every request has a new prompt. A step's time
is the difference between two numbers of steps. This server answers over HTTP, the others within their process.

The peers' packages need not be in this environment: `--peers PYTHON` names an interpreter that has
`optimum-intel openvino-genai openvino-tokenizers cyllama diffusers`. A peer that is missing is said so.
"""

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import openvino
import psutil
import torch
from diffusers import AutoPipelineForText2Image, EulerDiscreteScheduler

from admin.paths import HOME
from benchmarks.peers.lines import GUIDANCE_SCALE, Peer
from benchmarks.plot import bars
from benchmarks.timing import in_turns, ratio, row
from benchmarks.true_shapes import make
from launch.processes import MALLOC
from tests.support.original_layout import save_single_file
from tests.support.running import running

STOCK = "plain diffusers, float32"
Generate = Callable[[str, int, int], object]  # prompt, pixels, steps


class Engines:
    """The engines that can run here, by name: each starts for as long as it is measured.

    Args:
        python: the peers' interpreter.
    """

    def __init__(self, folder: Path, python: str) -> None:
        self._folder, self._python = folder, python
        self.threads = psutil.cpu_count(logical=False) or 1
        self.others: dict[str, Callable[[], contextlib.AbstractContextManager[Generate]]] = {}
        model, threads = str(folder / "model"), str(self.threads)
        self.stock = lambda: self._peer("stock", model, "float32", python=sys.executable)
        capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if capable:
            self.others["plain diffusers, bfloat16, channels-last"] = lambda: self._peer(
                "stock", model, "bfloat16", python=sys.executable
            )
        else:
            row("bfloat16", "not measured: this processor does not compute in it")
        for precision, dtype in (("f32", "float32"), *([("bf16", "bfloat16")] if capable else [])):
            options = ("--engine", "openvino", "--dtype", dtype)
            self.others[f"this server, OpenVINO {precision}"] = lambda options=options: self._server(*options)
            for name, module, arguments in (
                ("optimum-intel", "optimum_openvino", (model, str(folder / "optimum"))),
                ("OpenVINO GenAI", "openvino_genai", (str(folder / "optimum"),)),
            ):
                arguments = (module, *arguments, precision, threads)
                self.others[f"{name}, {precision}"] = lambda arguments=arguments: self._peer(*arguments)
        single = ("stable_diffusion_cpp", str(folder / "model.safetensors"), threads)
        self.others["stable-diffusion.cpp, f16"] = lambda: self._peer(*single)

    @contextlib.contextmanager
    def _peer(self, module: str, *arguments: str, python: str | None = None) -> Iterator[Generate]:
        environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        log = self._folder / f"{module}.log"
        with contextlib.closing(Peer(python or self._python, module, arguments, environment, HOME, log)) as peer:
            yield peer.seconds

    @contextlib.contextmanager
    def _server(self, *options: str) -> Iterator[Generate]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        with running(folder, "--model", str(self._folder / "model"), *options) as server:
            yield lambda prompt, size, steps: server.images(
                "txt2img",
                prompt=prompt,
                width=size,
                height=size,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE_SCALE,
                seed=1,
            )


def make_model(folder: Path) -> None:
    """Writes the model as a folder in float32, and as one file in float16."""
    make(folder / "model", "v1", torch.float32)
    pipeline = AutoPipelineForText2Image.from_pretrained(folder / "model", dtype=torch.float32)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.scheduler.save_pretrained(folder / "model" / "scheduler")
    save_single_file(pipeline.to(torch.float16), folder / "model.safetensors")


def measure(
    name: str, engine: Generate, stock: Generate, sizes: Sequence[int], few: int, many: int, rounds: int
) -> dict[int, tuple[float, float]]:
    """The seconds of a step of the engine and of plain diffusers, for each size, in turns."""
    numbers = count()
    found = {}
    for size in sizes:
        works = [
            lambda run=run, size=size, steps=steps: run(f"an image, number {next(numbers)}", size, steps)
            for run in (engine, stock)
            for steps in (few, many)
        ]
        for work in works[::2]:  # to warm up
            work()
        times = in_turns(rounds, *works, warm_up=False)
        steps, plain = (
            [(long - short) / (many - few) for short, long in zip(*pair, strict=True)]
            for pair in (times[:2], times[2:])
        )
        row(
            f"{name}, {size} px",
            f"{statistics.median(steps):.2f} s a step, {ratio(steps, plain):.2f} × {STOCK}; an image of {many} steps "
            f"{statistics.median(times[1]):.1f} s, {ratio(times[1], times[3]):.2f} ×",
        )
        found[size] = statistics.median(steps), statistics.median(plain)
    return found


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sd-engines-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="the peers' Python (default: this one)")
    parser.add_argument("--size", type=int, nargs="+", default=[256], help="pixels (default: 256)")
    parser.add_argument("--steps", type=int, nargs=2, default=[1, 4], help="two numbers of steps (default: 1 4)")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", help="engines by name (default: all)")
    parser.add_argument("--plot", type=Path, help="an SVG of the seconds a step")
    options = parser.parse_args()
    few, many = options.steps
    measured: dict[str, dict[int, tuple[float, float]]] = {}
    with scratch() as folder, ProcessPoolExecutor(1, get_context("spawn")) as process:
        print("| what | measured |\n|---|---|", flush=True)
        process.submit(make_model, folder).result()
        process.shutdown()  # its memory goes with it
        engines = Engines(folder, options.peers)
        with engines.stock() as stock:
            for name in options.only or engines.others:
                try:
                    with engines.others[name]() as engine:
                        measured[name] = measure(name, engine, stock, options.size, few, many, options.rounds)
                except (RuntimeError, AssertionError, OSError) as error:
                    row(name, f"not measured: {str(error).strip().splitlines()[-1]}")
    plain = {size: statistics.median(found[size][1] for found in measured.values()) for size in options.size}
    for size, seconds in plain.items():
        row(f"{STOCK}, {size} px", f"{seconds:.2f} s a step, the median beside each of them")
    if options.plot:
        title = f"Stable Diffusion 1.5, seconds a guided step, {engines.threads} cores, {platform.machine()}"
        shown = {
            size: {STOCK: plain[size]} | {name: found[size][0] for name, found in measured.items()}
            for size in options.size
        }
        try:
            bars(shown, title, options.plot)
        except ImportError as error:
            print(f"\nNo plot: {error}")


if __name__ == "__main__":
    main()
