"""Stable Diffusion in its true shapes, with random weights: time and memory beside plain diffusers.

`make bench-true-shapes`; with `ARGS="--device cuda --size 512 --steps 20"` on a GPU, where it also measures the
combined archive and low-memory mode. Every time is taken side by side with the plain pipeline, in turns. With
`--engine openvino` it measures the combined archive by itself: SDXL's plain pipeline does not fit beside it into 24 GB.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import psutil
import torch
import transformers
from diffusers import AutoPipelineForText2Image
from transformers import CLIPTextConfig, CLIPTokenizer

from benchmarks.timing import difference, in_turns, seconds
from handlers.hardware.device import Peak, choose_dtype
from tests.support.paths import CONFIGS
from tests.support.running import Running, running
from tests.support.samples import decode

TOGETHER = 4  # clients at once


def make(folder: Path, shape: str, dtype: torch.dtype) -> None:
    """Writes a model of this shape; its pipeline class and parts are those that its model_index.json names."""
    index = json.loads((CONFIGS / shape / "model_index.json").read_text())
    torch.manual_seed(0)
    parts: dict[str, Any] = {}
    torch.set_default_dtype(dtype)  # SDXL in float32 takes 14 GB
    for name, (library, kind) in ((name, value) for name, value in index.items() if isinstance(value, list)):
        if kind == "CLIPTokenizer":
            parts[name] = CLIPTokenizer.from_pretrained(CONFIGS / "tokenizer")
        elif library == "transformers":
            config = CLIPTextConfig.from_pretrained(CONFIGS / shape / name)
            parts[name] = getattr(transformers, kind)(config)
        elif library == "diffusers":
            kind = getattr(diffusers, kind)
            parts[name] = kind.from_config(kind.load_config(CONFIGS / shape / name))
        else:
            parts[name] = None
    torch.set_default_dtype(torch.float32)
    if "safety_checker" in index:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    getattr(diffusers, index["_class_name"])(**parts).to(dtype=dtype).save_pretrained(folder)


class Server:
    """Servers of one model; images of one size."""

    def __init__(self, model: Path, size: int, steps: int, rounds: int) -> None:
        self.model, self.size, self.steps, self.rounds = model, size, steps, rounds
        scheduler = json.loads((model / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        self.is_pndm = scheduler == "PNDMScheduler"

    def forwards(self, steps: int) -> int:
        """PNDM has one more than it is asked for, but for a single step."""
        return steps + (self.is_pndm and steps > 1)

    def served(self, instance: Running, steps: int = 0) -> np.ndarray:
        fields: dict[str, Any] = {"num_inference_steps": steps or self.steps, "guidance_scale": 7.5, "seed": 1}
        return decode(instance.images("txt2img", width=self.size, height=self.size, **fields)[0])

    def measure_alone(self, name: str, *options: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            begin = time.perf_counter()
            with running(Path(scratch), "--model", str(self.model), *options) as instance:
                print(f"| {name}: first start to ready | {time.perf_counter() - begin:.0f} s |", flush=True)
                whole, one = in_turns(self.rounds, lambda: self.served(instance), lambda: self.served(instance, 1))
                step = difference(whole, one) / (self.forwards(self.steps) - 1)
                print(
                    f"| {name}: {self.size} px | {step:.1f} s a guided step; {statistics.median(whole):.0f} s for "
                    f"{self.steps} steps, {statistics.median(one):.0f} s for one |"
                )
                print_workers(name, instance)


def print_workers(name: str, instance: Running) -> None:
    memory = [worker.memory_full_info() for worker in instance.workers()]
    shown = ", ".join(f"{info.pss / 2**20:.0f}" for info in memory)
    print(
        f"| {name}: memory of the workers (PSS) | {sum(info.pss for info in memory) / 2**20:.0f} MiB together "
        f"({shown}); one alone (RSS) {max(info.rss for info in memory) / 2**20:.0f} |"
    )


class Bench(Server):
    """The plain pipeline and a server of the same model, on the same device."""

    def __init__(self, model: Path, device: str, dtype: torch.dtype, size: int, steps: int, rounds: int) -> None:
        super().__init__(model, size, steps, rounds)
        self.device, self.on = device, ("--device", device, "--dtype", str(dtype).removeprefix("torch."))
        begin = time.perf_counter()
        self.pipeline = AutoPipelineForText2Image.from_pretrained(model, dtype=dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        print(f"| plain diffusers: load | {time.perf_counter() - begin:.1f} s |")
        with Peak(torch.device(device)) as peak:
            self.plain()
        if peak.bytes:
            used = torch.cuda.memory_allocated() + peak.bytes
            print(f"| plain diffusers: memory of the GPU at its peak | {used / 2**30:.2f} GiB |")

    def plain(self) -> np.ndarray:
        image = self.pipeline(
            prompt="a red apple", negative_prompt="", num_inference_steps=self.steps, guidance_scale=7.5,
            width=self.size, height=self.size, generator=torch.Generator().manual_seed(1),
        ).images[0]  # fmt: skip
        return np.asarray(image).astype(int)

    def measure(self, name: str, *options: str) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            begin, before = time.perf_counter(), self._free()
            with running(
                Path(scratch), "--model", str(self.model), *self.on, "--engine", "torch", *options
            ) as instance:
                print(f"| {name}: start to ready | {time.perf_counter() - begin:.1f} s |")
                self._memory(name, instance, before)
                served, plain = in_turns(self.rounds, lambda: self.served(instance), self.plain)
                step = statistics.median(served) / self.forwards(self.steps)
                ratio = statistics.median(a / b for a, b in zip(served, plain, strict=True))
                print(
                    f"| {name}: {self.size} px, {self.steps} steps | {step:.3f} s a step, "
                    f"{ratio:.3f} × plain diffusers; {difference(served, plain) * 1000:+.0f} ms a request |"
                )
                apart = int(np.abs(self.served(instance) - self.plain()).max())
                print(f"| {name}: image against plain diffusers' | at most {apart} of 255 apart |")
                if self.device != "cpu":
                    self._together(name, instance)
                    self._memory(f"{name}, after that", instance, before)

    def _together(self, name: str, instance: Running) -> None:
        def all_at_once() -> None:
            with ThreadPoolExecutor(TOGETHER) as clients:
                list(clients.map(lambda _: self.served(instance), range(TOGETHER)))

        def one_by_one() -> None:
            for _ in range(TOGETHER):
                self.plain()

        served, plain = in_turns(self.rounds, all_at_once, one_by_one)
        print(
            f"| {name}: {TOGETHER} clients | {TOGETHER / statistics.median(served):.2f} images/s, "
            f"{statistics.median(b / a for a, b in zip(served, plain, strict=True)):.2f} × plain diffusers one by one |"
        )

    def _free(self) -> int:
        return torch.cuda.mem_get_info()[0] if self.device.startswith("cuda") else 0

    def _memory(self, name: str, instance: Running, before: int) -> None:
        if self.device == "cpu":
            print_workers(name, instance)
        else:
            print(f"| {name}: memory of the GPU | {(before - self._free()) / 2**30:.2f} GiB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument("--shape", default="v1", choices=("v1", "v2", "xl_base"), help="default: %(default)s")
    parser.add_argument("--dtype", default="auto", help="default: %(default)s")
    parser.add_argument("--engine", default="torch", choices=("torch", "openvino"), help="default: %(default)s")
    parser.add_argument("--size", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="pairs (default: %(default)s)")
    options = parser.parse_args()
    alone = options.engine == "openvino"
    if alone and (options.device != "cpu" or options.dtype != "auto" or options.steps < 2):
        parser.error("--engine openvino takes --device cpu, --dtype auto, and 2 steps at least.")
    # OpenVINO computes in what the processor has, whatever the weights are in
    dtype = torch.float16 if alone else choose_dtype(options.dtype, torch.device(options.device))
    folder = Path(tempfile.mkdtemp(prefix="sd-true-shape-"))
    try:
        print("| what | measured |\n|---|---|", flush=True)
        took = seconds(lambda: make(folder, options.shape, dtype))
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        cores = psutil.cpu_count()
        print(f"| weights, {options.shape}, {dtype}, {cores} cores | {size / 2**30:.2f} GiB, made in {took:.0f} s |")
        if alone:
            server = Server(folder, options.size, options.steps, options.rounds)
            server.measure_alone("combined archive, OpenVINO", "--device", "cpu", "--engine", "openvino")
            return
        bench = Bench(folder, options.device, dtype, options.size, options.steps, options.rounds)
        bench.measure("three archives", "--archives", "three")
        if options.device != "cpu":
            bench.measure("combined archive")
            bench.measure("combined, low memory", "--low-memory")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
