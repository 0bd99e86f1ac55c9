"""Seconds of Stable Diffusion on a CPU, by engine: `python -m benchmarks.engines`, a table on standard output.

The model has the true shapes of Stable Diffusion 1.5 with random weights, and Euler's scheduler. Each engine runs in a
process of its own with as many threads, all of them in turns; every request has a new prompt. A step's time is the
difference between two numbers of steps. This server answers over HTTP, the others within their process.

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
from collections.abc import Callable, Iterator
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
    """The engines that can run here, by name. They end with `stack`."""

    def __init__(self, folder: Path, python: str, stack: contextlib.ExitStack) -> None:
        self._folder, self._python, self._stack = folder, python, stack
        self.threads = psutil.cpu_count(logical=False) or 1
        self.run: dict[str, Generate] = {}

    def add(self, name: str, engine: Callable[[], Generate]) -> None:
        try:
            self.run[name] = engine()
        except (RuntimeError, AssertionError, OSError) as error:
            row(name, f"not measured: {str(error).strip().splitlines()[-1]}")

    def peer(self, module: str, *arguments: str, python: str | None = None) -> Generate:
        environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        log = self._folder / f"{module}-{len(self.run)}.log"
        peer = Peer(python or self._python, module, arguments, environment, HOME, log)
        self._stack.callback(peer.end)
        return peer.seconds

    def server(self, model: Path, *options: str) -> Generate:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        server = self._stack.enter_context(running(folder, "--model", str(model), *options))
        return lambda prompt, size, steps: server.images(
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


def start(engines: Engines, folder: Path) -> None:
    """Makes the model and starts every engine with it."""
    model, threads = folder / "model", str(engines.threads)
    with ProcessPoolExecutor(1, get_context("spawn")) as process:  # whose memory goes with it
        process.submit(make_model, folder).result()

    def here(dtype: str) -> Callable[[], Generate]:
        return lambda: engines.peer("stock", str(model), dtype, python=sys.executable)

    engines.add(STOCK, here("float32"))
    capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if capable:
        engines.add("plain diffusers, bfloat16, channels-last", here("bfloat16"))
    else:
        row("bfloat16", "not measured: this processor does not compute in it")
    for precision, dtype in (("f32", "float32"), *([("bf16", "bfloat16")] if capable else [])):
        options = ("--engine", "openvino", "--dtype", dtype)
        engines.add(f"this server, OpenVINO {precision}", lambda options=options: engines.server(model, *options))
        for name, module, arguments in (
            ("optimum-intel", "optimum_openvino", (str(model), str(folder / "optimum"))),
            ("OpenVINO GenAI", "openvino_genai", (str(folder / "optimum"),)),
        ):
            arguments += (precision, threads)
            engines.add(f"{name}, {precision}", lambda m=module, a=arguments: engines.peer(m, *a))
    single = ("stable_diffusion_cpp", str(folder / "model.safetensors"), threads)
    engines.add("stable-diffusion.cpp, f16", lambda: engines.peer(*single))


def measure(engines: Engines, size: int, few: int, many: int, rounds: int) -> dict[str, float]:
    """The seconds of a step of each engine."""
    numbers = count()
    works = [
        lambda run=run, steps=steps: run(f"an image, number {next(numbers)}", size, steps)
        for run in engines.run.values()
        for steps in (few, many)
    ]
    times = in_turns(rounds, *works)
    steps = {
        name: [(long - short) / (many - few) for short, long in zip(times[2 * i], times[2 * i + 1], strict=True)]
        for i, name in enumerate(engines.run)
    }
    for i, name in enumerate(engines.run):
        whole = times[2 * i + 1]
        row(
            f"{name}, {size} px",
            f"{statistics.median(steps[name]):.2f} s a step, {ratio(steps[name], steps[STOCK]):.2f} ×; an image of "
            f"{many} steps {statistics.median(whole):.1f} s, {ratio(whole, times[1]):.2f} ×",
        )
    return {name: statistics.median(seconds) for name, seconds in steps.items()}


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
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s, after one that warms up")
    parser.add_argument("--plot", type=Path, help="an SVG of the seconds a step")
    options = parser.parse_args()
    with scratch() as folder, contextlib.ExitStack() as stack:
        print("| what | measured |\n|---|---|", flush=True)
        engines = Engines(folder, options.peers, stack)
        start(engines, folder)
        measured = {size: measure(engines, size, *options.steps, options.rounds) for size in options.size}
        if options.plot:
            title = f"Stable Diffusion 1.5, seconds a guided step, {engines.threads} cores, {platform.machine()}"
            bars(measured, title, options.plot)


if __name__ == "__main__":
    main()
