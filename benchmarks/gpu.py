"""What a card gives, in one call of under 8 minutes: `python -m benchmarks.gpu`, with random weights of true shapes.

It checks before it times: graphs against the eager forward, bit by bit, and pictures against plain diffusers'. Each
figure says what it is of: the UNet alone, the engine (everything but HTTP), or the whole way over HTTP; and its share
of the floor, the time that the UNet's multiplications take at the rate that `--tflops` gives. With `--device cpu` and
a small `--model` it runs for a try on any machine, without graphs. Not run on a card so far.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
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
from handlers.forward.calls import UNetCall
from handlers.forward.cuda_graphs import GraphedForward
from handlers.forward.merging import forward, merge
from handlers.hardware.device import choose_dtype
from handlers.pipelines.arguments import generator
from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend
from tests.support.running import running
from tests.support.samples import decode

STEPS, GUIDANCE = 20, 7.5
BATCHES = (1, 2, 4, 8, 16)  # guided pictures


class Bench:
    def __init__(self, options: argparse.Namespace, model: Path) -> None:
        self.options, self.model = options, model
        self.device = torch.device(options.device)
        self.dtype = choose_dtype("auto", self.device)
        self.on_card = self.device.type == "cuda"
        self.plain = AutoPipelineForText2Image.from_pretrained(model, dtype=self.dtype).to(self.device)
        self.plain.set_progress_bar_config(disable=True)
        self.call = self._one_call()
        with FlopCounterMode(display=False) as counter:
            forward(self.call)
        self.floor = counter.get_total_flops() / (options.tflops * 1e12)  # seconds of a guided step
        self.row(f"floor of a guided step at {options.tflops:g} TFLOP/s", f"{self.floor * 1000:.2f} ms")

    def row(self, what: str, measured: str) -> None:
        print(f"| {what} | {measured} |", flush=True)

    def _one_call(self) -> UNetCall:
        job = PipelineJob(self.plain, self.arguments(1))
        job.start()
        assert job.call is not None, job.error
        call = job.call
        job.cancel()
        return call

    def arguments(self, seed: int) -> dict[str, Any]:
        return {
            "prompt": "a red apple", "negative_prompt": "", "num_inference_steps": STEPS, "guidance_scale": GUIDANCE,
            "width": self.options.size, "height": self.options.size, "generator": generator(seed),
        }  # fmt: skip

    def seconds(self, work: Callable[[], Any], repeats: int = 10) -> float:
        """The median time of `work` with all that it queues on the device, after three calls to warm up."""
        times = []
        for _ in range(repeats + 3):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[3:])

    def wait(self) -> None:
        if self.on_card:
            torch.cuda.synchronize(self.device)

    def step(self, name: str, run: Callable[[UNetCall], Any], call: UNetCall) -> None:
        pictures = call.rows // self.call.rows
        took = self.seconds(lambda: run(call))
        self.row(
            f"UNet alone, {name}, {pictures} pictures",
            f"{pictures / took:.1f} guided steps/s, {self.floor * pictures / took:.0%} of the floor's rate",
        )

    def check_graphs(self) -> None:
        for pictures in BATCHES:
            call = merge([self.call] * pictures)
            graphs = GraphedForward()
            expected = forward(call)[0]
            graphs(call)
            same = bool((graphs(call)[0] == expected).all())
            self.row(f"graph against eager, {pictures} pictures", "bit-equal" if same else "DIFFERENT")

    def unet(self) -> None:
        for pictures in BATCHES:
            call = merge([self.call] * pictures)
            self.step("eager", forward, call)
            if self.on_card:
                self.step("CUDA graph", GraphedForward(), call)
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
                    "cuDNN": SDPBackend.CUDNN_ATTENTION, "math": SDPBackend.MATH}  # fmt: skip
        for name, backend in backends.items():
            try:
                with sdpa_kernel(backend):
                    self.step(f"eager, {name} attention", forward, self.call)
            except RuntimeError as error:
                self.row(f"{name} attention", f"cannot: {str(error).splitlines()[0]}")
        unet = self.call.unet.to(memory_format=torch.channels_last)
        normalized = unet.conv_norm_out(torch.ones_like(unet.conv_in(self.call.sample)))
        keeps = normalized.is_contiguous(memory_format=torch.channels_last)
        self.row("torch's GroupNorm in channels-last", "keeps the layout" if keeps else "gives it up")
        for pictures in (1, 8):
            self.step("channels-last, eager", forward, merge([self.call] * pictures))
            if self.on_card:
                self.step("channels-last, CUDA graph", GraphedForward(), merge([self.call] * pictures))
        if importlib.util.find_spec("triton") and self.on_card:  # OpenAI's, for the comparison alone
            compiled = torch.compile(unet, mode="max-autotune-no-cudagraphs")
            self.step("torch.compile", lambda call: forward(replace(call, unet=compiled)), self.call)
        unet.to(memory_format=torch.contiguous_format)

    def engine(self) -> None:
        """The handler without HTTP: its images against plain diffusers', and images a second."""
        for graphs, channels_last in ((False, False), (True, False), (True, True))[: 3 if self.on_card else 1]:
            name = "engine" + " with graphs" * graphs + ", channels-last" * channels_last
            handler = CombinedHandler()
            settings = {"cuda_graphs": graphs, "channels_last": channels_last}
            handler.initialize(Context(model=str(self.model), device=self.options.device, **settings))
            frontend = Frontend(handler)

            def draw(pictures: int, frontend: Frontend = frontend) -> np.ndarray:
                size = self.options.size
                fields = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": size, "height": size}
                names = [frontend.send(**fields, seed=seed) for seed in range(1, pictures + 1)]
                frontend.run()
                return decode(frontend.result(names[0])["images"][0])

            alone = np.asarray(self.plain(**self.arguments(1)).images[0]).astype(int)
            for pictures in (1, 8):
                apart = np.abs(draw(pictures) - alone).max()
                self.row(f"{name}: image of {pictures} against plain diffusers'", f"at most {apart} of 255 apart")
            one_by_one = self.seconds(lambda: self.plain(**self.arguments(1)), 3)
            for pictures in BATCHES:
                rate = pictures / self.seconds(lambda pictures=pictures, draw=draw: draw(pictures), 3)
                self.row(
                    f"{name}, {pictures} pictures at once, {STEPS} steps",
                    f"{rate:.2f} images/s, {rate * one_by_one:.2f} × plain diffusers one by one, "
                    f"{rate * STEPS * self.floor:.0%} of the floor's rate",
                )

    def http(self) -> None:
        options = ["--model", str(self.model), "--device", self.options.device, "--archives", "combined"]
        options += ["--cuda-graphs"] * self.on_card
        size = {"width": self.options.size, "height": self.options.size}
        with tempfile.TemporaryDirectory() as folder, running(Path(folder), *options) as server:
            for clients in BATCHES:

                def draw(clients: int = clients) -> None:
                    with ThreadPoolExecutor(clients) as pool:
                        fields = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, **size}
                        list(pool.map(lambda seed: server.images("txt2img", seed=seed, **fields), range(clients)))

                rate = clients / self.seconds(draw, 3)
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
    parser.add_argument("--tflops", type=float, default=790, help="the card's rate (default: %(default)s, an H200's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sd-gpu-") as folder:
        if options.model is None:
            make(Path(folder), options.shape, choose_dtype("auto", torch.device(options.device)))
        name = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
        print(f"{name}, torch {torch.__version__}\n\n| what | measured |\n|---|---|", flush=True)
        bench = Bench(options, options.model or Path(folder))
        if bench.on_card:
            bench.check_graphs()
        bench.unet()
        bench.engine()
        bench.http()


if __name__ == "__main__":
    main()
