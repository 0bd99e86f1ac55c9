"""What a GPU gives, in one call of a few minutes: `python -m benchmarks.gpu`, with random weights of true shapes.

It checks before it times: graphs against the eager forward, bit by bit, and images against plain diffusers'. Each
figure says what it is of: the UNet alone, the engine (everything but HTTP), or the whole way over HTTP; and its share
of the floor, the time that the UNet's multiplications take at the rate that `--tflops` gives. The parts run in the
order of `--parts`; a part that fails is reported and the next one runs, and after `--seconds` no new measurement
begins. With `--device cpu` and a small `--model` it runs on any machine, without graphs.
"""

import argparse
import collections
import gc
import importlib.util
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoPipelineForText2Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.true_shapes import make
from handlers.engine.pipeline_job import PipelineJob
from handlers.forward.calls import DenoiserCall
from handlers.forward.cuda_graphs import GraphedForward
from handlers.forward.merging import forward, merge
from handlers.hardware.device import choose_dtype
from handlers.pipelines.noise import generator
from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend
from tests.support.running import running
from tests.support.samples import decode

STEPS, GUIDANCE = 20, 7.5
BATCHES = (1, 2, 4, 8)  # guided images
PARTS = ("check_graphs", "engine", "unet", "channels_last", "attention", "http", "compile")


class OutOfTime(Exception):
    """`--seconds` are over."""


class Bench:
    def __init__(self, options: argparse.Namespace, model: Path, end: float) -> None:
        self.end = end
        self.options, self.model = options, model
        self.device = torch.device(options.device)
        self.kept: list[GraphedForward] = []  # the memory that all graphs share is gone for good with the last of them
        self.dtype = choose_dtype("auto", self.device)
        self.on_gpu = self.device.type == "cuda"
        self.plain = AutoPipelineForText2Image.from_pretrained(model, dtype=self.dtype).to(self.device)
        self.plain.set_progress_bar_config(disable=True)
        self.call = self._one_call()
        with FlopCounterMode(display=False) as counter:
            forward(self.call)
        self.floor = counter.get_total_flops() / (options.tflops * 1e12)  # seconds of a guided step
        self.row(f"floor of a guided step at {options.tflops:g} TFLOP/s", f"{self.floor * 1000:.2f} ms")

    def row(self, what: str, measured: str) -> None:
        print(f"| {what} | {measured} |", flush=True)

    def _one_call(self) -> DenoiserCall:
        job = PipelineJob(self.plain, self.arguments(1))
        job.start()
        call = job.call
        assert isinstance(call, DenoiserCall), job.error
        job.cancel()
        return call

    def arguments(self, seed: int) -> dict[str, Any]:
        return {
            "prompt": "a red apple", "negative_prompt": "", "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
            "width": self.options.size, "height": self.options.size, "generator": generator(seed),
        }  # fmt: skip

    def seconds(self, work: Callable[[], Any], repeats: int = 10) -> float:
        """The median time of `work` with all that it queues on the device, after up to three calls to warm up."""
        times = []
        warm_up = min(3, repeats)
        for _ in range(repeats + warm_up):
            if time.perf_counter() > self.end:
                raise OutOfTime
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[warm_up:])

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def graphs(self) -> GraphedForward:
        self.kept.append(GraphedForward())
        return self.kept[-1]

    def step(self, name: str, run: Callable[[DenoiserCall], Any], call: DenoiserCall) -> None:
        images = call.rows // self.call.rows
        took = self.seconds(lambda: run(call))
        self.row(
            f"UNet alone, {name}, {images} images",
            f"{images / took:.1f} guided steps/s, {self.floor * images / took:.0%} of the floor's rate",
        )

    def check_graphs(self) -> None:
        for images in BATCHES:
            call = merge([self.call] * images)
            graphs = self.graphs()
            expected = forward(call)[0]
            graphs(call)
            same = bool((graphs(call)[0] == expected).all())
            shown = "bit-equal" if same else "DIFFERENT"
            self.row(f"graph against eager, {images} images", shown if graphs.captures else "no graph was captured")

    def unet(self) -> None:
        for images in BATCHES:
            call = merge([self.call] * images)
            self.step("eager", forward, call)
            if self.on_gpu:
                self.step("CUDA graph", self.graphs(), call)

    def attention(self) -> None:
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
                    "cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
        for name, backend in backends.items():
            try:
                with sdpa_kernel(backend):
                    self.step(f"eager, {name} attention", forward, merge([self.call] * 8))
            except RuntimeError as error:
                self.row(f"{name} attention", f"cannot: {str(error).splitlines()[0]}")

    def channels_last(self) -> None:
        unet = self.call.module.to(memory_format=torch.channels_last)
        try:
            normalized = unet.conv_norm_out(torch.ones_like(unet.conv_in(self.call.sample)))
            keeps = normalized.is_contiguous(memory_format=torch.channels_last)
            self.row("torch's GroupNorm in channels-last", "keeps the layout" if keeps else "gives it up")
            for images in (1, 8):
                self.step("channels-last, eager", forward, merge([self.call] * images))
                if self.on_gpu:
                    self.step("channels-last, CUDA graph", self.graphs(), merge([self.call] * images))
        finally:
            unet.to(memory_format=torch.contiguous_format)

    def compile(self) -> None:
        """torch.compile, for the comparison alone: it takes minutes to compile."""
        if importlib.util.find_spec("triton") and self.on_gpu:
            compiled = torch.compile(self.call.module, mode="max-autotune-no-cudagraphs")
            self.step("torch.compile", lambda call: forward(replace(call, module=compiled)), self.call)

    def engine(self) -> None:
        """The handler without HTTP: its images against plain diffusers', and images a second."""
        plain = [np.asarray(self.plain(**self.arguments(seed)).images[0]).astype(int) for seed in range(1, 9)]
        one_by_one = self.seconds(lambda: self.plain(**self.arguments(1)), 3)
        self.row(f"plain diffusers one by one, {STEPS} steps", f"{1 / one_by_one:.2f} images/s")
        mixed: list[dict[str, Any]] = [
            {"num_inference_steps": 16 + i, "guidance_scale": 5.0 + i / 2, "seed": 1 + i} for i in range(8)
        ]

        def plain_mixed() -> None:
            for own in mixed:
                given = {key: value for key, value in own.items() if key != "seed"}
                self.plain(**(self.arguments(own["seed"]) | given))

        mixed_plain = self.seconds(plain_mixed, 1)
        for graphs, channels_last in ((False, False), (True, False), (True, True))[: 3 if self.on_gpu else 1]:
            name = "engine" + " with graphs" * graphs + ", channels-last" * channels_last
            begin = time.perf_counter()
            handler = CombinedHandler()
            settings = {"cuda_graphs": graphs, "channels_last": "always" if channels_last else "never"}
            handler.initialize(Context(model=str(self.model), device=self.options.device, **settings))
            self.row(f"{name}: load and warm up", f"{time.perf_counter() - begin:.1f} s")
            if self.on_gpu:
                self.row(f"{name}: memory held", f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB")
                torch.cuda.reset_peak_memory_stats()
            frontend = Frontend(handler)
            size = self.options.size
            usual = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": size, "height": size}

            def generate(*own: dict[str, Any], frontend: Frontend = frontend, usual: Any = usual) -> list[np.ndarray]:
                names = [frontend.send(**(usual | fields)) for fields in own]
                frontend.run()
                for name in names:
                    if "result" not in (last := frontend.messages(name)[-1]):
                        raise RuntimeError(f"no image: {last}")
                return [decode(frontend.result(name)["images"][0]).astype(int) for name in names]

            def same(images: int, generate: Any = generate) -> list[np.ndarray]:
                return generate(*({"seed": seed} for seed in range(1, images + 1)))

            for images in (1, 8):
                apart = [int(np.abs(a - b).max()) for a, b in zip(same(images), plain, strict=False)]
                shown = "bit-equal" if max(apart) == 0 else f"at most {max(apart)} of 255 apart"
                self.row(f"{name}: {images} at once against plain diffusers' one by one", shown)
            for images in BATCHES:
                rate = images / self.seconds(lambda images=images, same=same: same(images), 3)
                self.row(
                    f"{name}, {images} images at once, {STEPS} steps",
                    f"{rate:.2f} images/s, {rate * one_by_one:.2f} × plain diffusers one by one, "
                    f"{rate * STEPS * self.floor:.0%} of the floor's rate",
                )
            took = self.seconds(lambda generate=generate: generate(*mixed), 2)
            self.row(
                f"{name}, 8 mixed requests (16 to 23 steps, guidance 5 to 8.5)",
                f"{8 / took:.2f} images/s, {mixed_plain / took:.2f} × plain diffusers one by one",
            )
            if self.on_gpu:
                self.row(f"{name}: memory at its peak", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
                for images in (1, 8):
                    self._host_waits(name, images, same)
            del handler, frontend, generate, same
            gc.collect()

    def _host_waits(self, name: str, images: int, work: Callable[[int], Any]) -> None:
        """Where the host waits for the GPU, which torch can say of most of its own calls."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work(images)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        places = collections.Counter(
            "/".join(Path(item.filename).parts[-2:]) + f":{item.lineno}"
            for item in caught
            if "synchroniz" in str(item.message)
        )
        shown = ", ".join(f"{place} {count}" for place, count in places.most_common(12))
        self.row(f"{name}: host waits, {images} images of {STEPS} steps", f"{sum(places.values())}: {shown}")

    def http(self) -> None:
        options = ["--model", str(self.model), "--device", self.options.device]
        options += ["--cuda-graphs"] * self.on_gpu
        size = {"width": self.options.size, "height": self.options.size}
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), *options) as server:
            for clients in BATCHES:

                def generate(clients: int = clients) -> None:
                    with ThreadPoolExecutor(clients) as pool:
                        fields = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **size}
                        list(pool.map(lambda seed: server.images("txt2img", seed=seed, **fields), range(clients)))

                rate = clients / self.seconds(generate, 3)
                self.row(
                    f"HTTP, {clients} clients, {STEPS} steps",
                    f"{rate:.2f} images/s, {rate * STEPS * self.floor:.0%} of the floor's rate",
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--shape", default="v1", choices=("v1", "v2", "xl_base"), help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="a model folder, in place of random weights")
    parser.add_argument("--size", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--tflops", type=float, default=790, help="the GPU's rate (default: %(default)s, an H100's or H200's)"
    )
    parser.add_argument("--parts", nargs="+", default=PARTS[:-1], choices=PARTS, help="default: all but compile")
    parser.add_argument(
        "--seconds", type=float, default=480, help="after these, begin nothing new (default: %(default)s)"
    )
    options = parser.parse_args()
    end = time.perf_counter() + options.seconds
    with tempfile.TemporaryDirectory(prefix="sd-gpu-") as folder:
        if options.model is None:
            with torch.device(options.device):  # a GPU draws random weights in no time
                make(Path(folder), options.shape, choose_dtype("auto", torch.device(options.device)))
        name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
        print(f"{name}, torch {torch.__version__}\n\n| what | measured |\n|---|---|", flush=True)
        bench = Bench(options, options.model or Path(folder), end)
        for part in options.parts:
            if part == "check_graphs" and not bench.on_gpu:
                continue
            try:
                getattr(bench, part)()
            except OutOfTime:
                bench.row(part, "out of time")
            except Exception as error:  # the other parts' figures are still worth having
                traceback.print_exc()
                bench.row(part, f"failed: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
