"""The start of the server beside what it has to consist of, and the memory that it holds."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

from admin.paths import HOME
from benchmarks.contenders import Contender
from benchmarks.timing import ratio, row
from launch.machine import free_ports, java_home, write_config
from tests.support.running import Running, running, wait_for

# what a worker has imported when it is ready, and how long this took
IMPORTS = """
import time
begin = time.perf_counter()
import ts.model_service_worker, ts.torch_handler.base_handler
import handlers.stable_diffusion
from diffusers import AutoencoderKL, AutoPipelineForText2Image, StableDiffusionPipeline, UNet2DConditionModel
from diffusers import DPMSolverMultistepScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer
print(time.perf_counter() - begin)
"""


def cold_start(model: Path, folder: Path, starts: int) -> None:
    """From nothing to ready, beside the imports of the worker and the start of TorchServe's frontend."""
    ready, imports, frontend = [], [], []
    for number in range(starts + 1):  # the first one keeps the conversion for OpenVINO
        own = folder / f"start-{number}"
        own.mkdir()
        begin = time.perf_counter()
        with running(own, "--model", str(model), SD_CACHE_DIR=str(folder / "cache")):
            ready.append(time.perf_counter() - begin)
        imports.append(_import_seconds())
        frontend.append(_frontend_seconds())
    least = [worker + java for worker, java in zip(imports, frontend, strict=True)]
    row(
        "cold start to ready",
        f"{statistics.median(ready[1:]):.1f} s, {ratio(ready[1:], least[1:]):.2f} × (the worker's imports, "
        f"{statistics.median(imports):.1f} s, + TorchServe's frontend alone, {statistics.median(frontend):.1f} s); "
        f"the first start, which converts the model, {ready[0]:.1f} s",
    )


def _import_seconds() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=HOME, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _frontend_seconds() -> float:
    """Until TorchServe, without a model, answers."""
    with tempfile.TemporaryDirectory(prefix="sd-bench-frontend-") as scratch:
        ports, config = free_ports(6), Path(scratch) / "config.properties"
        write_config(HOME / "config.properties", config, ports)
        environment = os.environ | {
            "JAVA_HOME": str(java_home()), "TMPDIR": scratch, "LOG_LOCATION": scratch, "METRICS_LOCATION": scratch,
        }  # fmt: skip
        command = [
            sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--model-store", scratch,
            "--ts-config", str(config), "--log-config", str(HOME / "log4j2.xml"),
        ]  # fmt: skip
        begin = time.perf_counter()
        process = psutil.Popen(
            command, cwd=scratch, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            wait_for(lambda: _answers(f"http://127.0.0.1:{ports[0]}/ping"))
            return time.perf_counter() - begin
        finally:
            Contender("frontend", "", process).end()


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False).is_success
    return False


class Memory:
    """The physical memory of this server's workers, of Java, and of the peers, as it goes on (PSS, Linux)."""

    def __init__(self, server: Running, peers: list[Contender]) -> None:
        self._server, self._peers = server, peers
        self._taken: list[dict[str, float]] = []
        self._stages: list[str] = []

    def take(self, stage: str) -> None:
        workers = [process.memory_full_info().pss / 1e6 for process in self._server.workers()]
        java = [child for child in self._server.process.children(recursive=True) if "java" in Path(child.exe()).name]
        if not self._taken:
            row("each worker's memory (PSS)", ", ".join(f"{megabytes:.0f}" for megabytes in workers) + " MB")
        self._stages.append(stage)
        self._taken.append(
            {"this server's workers": sum(workers), "Java": sum(p.memory_full_info().pss for p in java) / 1e6}
            | {peer.name: peer.memory() for peer in self._peers}
        )

    def show(self) -> None:
        """A row each; what was used for the first time grows at first, what leaks goes on growing."""
        for name in self._taken[0]:
            values = [taken[name] for taken in self._taken]
            shown = ", ".join(f"{value:.0f}" for value in values)
            row(
                f"memory (PSS) {', '.join(self._stages)}: {name}",
                f"{shown} MB; the last stage {values[-1] - values[-2]:+.0f} MB",
            )
