"""What serving costs and what batching gains: `make bench`, a table on standard output.

Every figure is a ratio or a difference between two things measured side by side, in turns, in one run; this machine
may be shared and noisy. The model is the embedded one, on this machine's CPU.
"""

import argparse
import base64
import json
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psutil
import torch

from handlers.archive import HOME
from handlers.config import HandlerConfig
from handlers.device import choose_dtype
from handlers.images import open_image
from handlers.pipeline_job import PipelineJob
from handlers.pipelines import CONFIGS, DEFAULTS_FILE, load_pipelines
from handlers.sources import resolve_model
from handlers.step_batcher import forward, merge
from tests.conftest import SIDE
from tests.e2e.running import Running, running
from tests.samples import file_bytes, picture

GUIDANCE, STEPS = 3.5, 20


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(rounds: int, *works: Callable[[], Any]) -> list[list[float]]:
    """The seconds of each work in each round, one after the other within a round; the first round warms up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + 1):
        for measured, work in zip(times, works, strict=True):
            measured.append(seconds(work))
    return [measured[1:] for measured in times]


def difference(server: list[float], plain: list[float]) -> float:
    return statistics.median(a - b for a, b in zip(server, plain, strict=True))


def _arguments(size: int, steps: int) -> dict[str, Any]:
    return {
        "prompt": "a red apple", "num_inference_steps": steps, "guidance_scale": GUIDANCE,
        "width": size, "height": size, "generator": torch.Generator().manual_seed(1),
    }  # fmt: skip


def free_size_copy(folder: Path) -> Path:
    """The embedded model without its rule to draw at one size only, which the plain pipeline does not know."""
    shutil.copytree(resolve_model("default", HOME, {}).location, folder)
    file = folder / DEFAULTS_FILE
    defaults = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({key: value for key, value in defaults.items() if key != "drawn_size"}))
    return folder


def _form(fields: dict[str, Any]) -> bytes:
    """A form as a browser encodes it, outside of what is timed."""
    return urlencode(fields | {"prompt": "x", "seed": 1, "num_inference_steps": 2, "strength": 1.0}).encode()


class Bench:
    def __init__(self, server: Running, rounds: int) -> None:
        self.server = server
        self.rounds = rounds
        self.http = httpx.Client(timeout=600)
        torch.set_num_threads(server.models()[0]["threads"])
        cpu = torch.device("cpu")
        path, configs = Path(resolve_model("default", HOME, {}).location), HOME / "models" / CONFIGS
        loaded = load_pipelines(path, ["txt2img"], cpu, choose_dtype("auto", cpu), HandlerConfig(), configs)
        self.pipeline = loaded["txt2img"]

    def plain(self, size: int, steps: int = STEPS) -> Any:
        return self.pipeline(**_arguments(size, steps))

    def request(self, size: int, steps: int = STEPS, http: httpx.Client | None = None) -> None:
        fields = {"prompt": "a red apple", "seed": 1, "guidance_scale": GUIDANCE}
        self._post("txt2img", fields | {"width": size, "height": size, "num_inference_steps": steps}, http)

    def _post(self, task: str, fields: dict[str, Any], http: httpx.Client | None = None) -> None:
        answer = (http or self.http).post(f"{self.server.url}/{task}", data=fields)
        assert answer.status_code == 200, answer.text

    def overhead(self, size: int, steps: int = STEPS) -> None:
        served, plain = in_turns(self.rounds, lambda: self.request(size, steps), lambda: self.plain(size, steps))
        ratio = statistics.median(a / b for a, b in zip(served, plain, strict=True))
        print(
            f"| overhead, {size} px, {steps} steps | {difference(served, plain) * 1000:+.0f} ms a request, "
            f"{ratio:.2f} × the in-process pipeline ({statistics.median(plain) * 1000:.0f} ms) |"
        )

    def job_overhead(self, size: int) -> None:
        """The pipeline as a coroutine against the pipeline called plainly, in this process."""

        def job() -> None:
            paused = self._job(size)
            while paused.call is not None:
                paused.advance(forward(paused.call))

        jobs, plain = in_turns(self.rounds, job, lambda: self.plain(size))
        ratio = statistics.median(a / b for a, b in zip(jobs, plain, strict=True))
        print(f"| pipeline as a coroutine, {size} px, in-process | {ratio:.2f} × the pipeline called plainly |")

    def _job(self, size: int) -> PipelineJob:
        job = PipelineJob(self.pipeline, _arguments(size, STEPS))
        job.start()
        return job

    def unet_gain(self, size: int, clients: int) -> float:
        """How much quicker the bare UNet is with the rows of `clients` guided images at once than one by one."""
        jobs = [self._job(size) for _ in range(clients)]
        calls = [job.call for job in jobs if job.call is not None]
        merged = merge(calls)
        alone, together = in_turns(self.rounds, lambda: forward(calls[0]), lambda: forward(merged))
        for job in jobs:
            job.cancel()
        return clients * statistics.median(a / b for a, b in zip(alone, together, strict=True))

    def throughput(self, size: int, clients: int) -> None:
        """`clients` closed-loop clients against one by one: the server's and the in-process pipeline."""
        each = 4

        def together() -> None:
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(lambda http: [self.request(size, http=http) for _ in range(each)], https))

        def one_by_one() -> None:
            for _ in range(clients * each):
                self.plain(size)

        https = [httpx.Client(timeout=600) for _ in range(clients)]
        served, plain = in_turns(max(2, self.rounds // 4), together, one_by_one)
        images = clients * each
        gain = statistics.median(b / a for a, b in zip(served, plain, strict=True))
        print(
            f"| {clients} clients, {size} px, {STEPS} steps | {images / statistics.median(served):.2f} images/s, "
            f"{gain:.2f} × the in-process pipeline one by one ({images / statistics.median(plain):.2f}); "
            f"bare UNet's gain {self.unet_gain(size, clients):.2f} × |"
        )

    def init_image(self, megabytes: int) -> None:
        """A small picture in a file of this size, against the same picture in a small file."""
        small = file_bytes(picture())
        padding = bytes(megabytes * 1_000_000)
        chunk = b"prVt" + padding
        end = small.rindex(b"IEND") - 4
        large = (
            small[:end] + len(padding).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + small[end:]
        )
        bodies = [_form({"init_image": base64.b64encode(data).decode()}) for data in (large, small)]
        headers = {"Content-Type": "application/x-www-form-urlencoded"}

        def send(body: bytes) -> None:
            answer = self.http.post(f"{self.server.url}/img2img", content=body, headers=headers)
            assert answer.status_code == 200, answer.text

        served, plain = in_turns(self.rounds, *(lambda body=body: send(body) for body in bodies))
        side = int((megabytes * 1_000_000 / 3) ** 0.5)
        photo = file_bytes(picture(side, side))
        decode = min(seconds(lambda: open_image(photo, "init_image", 10**9)) for _ in range(5))
        print(
            f"| init image of {megabytes} MB | {difference(served, plain) * 1000:+.0f} ms against one of "
            f"{len(small) / 1000:.0f} kB; decoding a noisy {side} × {side} PNG takes {decode * 1000:.0f} ms more |"
        )

    def memory(self) -> None:
        """Physical memory of the workers, shared pages divided among them (Linux)."""
        pss = [process.memory_full_info().pss / 1e6 for process in self.server.workers()]
        java = [p for p in self.server.process.children(recursive=True) if "java" in Path(p.exe()).name]
        each = ", ".join(f"{megabytes:.0f}" for megabytes in pss)
        print(
            f"| memory (PSS) of the {len(pss)} workers | {sum(pss):.0f} MB together ({each}); "
            f"Java {sum(p.memory_full_info().pss for p in java) / 1e6:.0f} MB |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12, help="how often each pair is measured (default: %(default)s)")
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="sd-bench-"))
    begin = time.perf_counter()
    model = free_size_copy(folder / "model")
    with running(folder, "--model", str(model)) as server:
        cold = time.perf_counter() - begin
        print(f"\n{psutil.cpu_count()} cores, torch {torch.__version__}\n\n| what | measured |\n|---|---|")
        print(f"| cold start to ready, three archives | {cold:.1f} s |", flush=True)
        bench = Bench(server, rounds)
        bench.memory()
        bench.job_overhead(SIDE)
        bench.overhead(SIDE)
        bench.overhead(SIDE, steps=1)
        bench.overhead(256)
        for clients in (1, 2, 4, 8):
            bench.throughput(SIDE, clients)
        for megabytes in (2, 8):
            bench.init_image(megabytes)


if __name__ == "__main__":
    main()
