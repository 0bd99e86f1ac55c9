"""The real server as a process, and requests to it."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from admin.running_server import RUN_FILE
from handlers.wire import COMBINED, TASKS
from launch.machine import free_ports
from tests.support.paths import HOME

HANG_S = 600  # a bound that only a hang reaches, also on a machine that is busy with other things


@dataclass
class Running:
    """A server that serves: `url` is its address, `process` is server.py."""

    url: str
    process: psutil.Popen
    output: Path
    proxy_output: Path | None = None  # of a proxy of its own, see `proxied`

    def post(self, task: str, fields: dict[str, Any], **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/{task}", data=fields, timeout=HANG_S, **options)

    def images(self, task: str, **fields: Any) -> list[dict[str, Any]]:
        """The images of a request that has to succeed."""
        answer = self.post(task, {"prompt": "a red apple"} | fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "success"
        images: list[dict[str, Any]] = answer.json()["images"]
        return images

    def models(self) -> list[dict[str, Any]]:
        models: list[dict[str, Any]] = httpx.get(f"{self.url}/models", timeout=HANG_S).json()["models"]
        return models

    @property
    def torchserve(self) -> dict[str, Any]:
        """How TorchServe itself is reached."""
        found: dict[str, Any] = json.loads(next(self.output.parent.glob(f"sd-server-*/{RUN_FILE}")).read_text())
        return found

    def workers(self) -> list[psutil.Process]:
        """TorchServe's worker processes."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
                if any(part.endswith("model_service_worker.py") for part in process.cmdline()):
                    found.append(process)
        return found

    def activity(self, task: str) -> dict[str, int]:
        """The counters of the worker that serves `task`."""
        return next(model["activity"] for model in self.models() if task in model["tasks"])


@contextlib.contextmanager
def running(
    folder: Path,
    *arguments: str,
    port: int = 0,
    within: Sequence[str] = (),
    command: Sequence[str] = (sys.executable, "server.py"),
    cwd: Path = HOME,
    **variables: str,
) -> Iterator[Running]:
    """`server.py` with these arguments, ready, with its temporary files under `folder`.

    Args:
        port: 0 = a free one.
        within: a command that is given the server's to run.
        command: the server's, run in the folder `cwd`.
    """
    port = port or free_ports(1)[0]
    output = folder / "server.out"
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "SD_MODEL")}
    with output.open("wb") as log:
        process = psutil.Popen(
            [*within, *command, "--port", str(port), *arguments],
            cwd=cwd, env=environment | {"TMPDIR": str(folder)} | variables, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    instance = Running(f"http://127.0.0.1:{port}", process, output)
    try:
        wait_for(lambda: "Stop with Ctrl-C" in output.read_text() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        yield instance
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(HANG_S)


@contextlib.contextmanager
def proxied(instance: Running, folder: Path, **variables: str) -> Iterator[Running]:
    """Another proxy in front of the TorchServe of `instance`, with these variables. It starts in a second."""
    port = free_ports(1)[0]
    reached = instance.torchserve
    registered = httpx.get(f"{reached['management_url']}/models", timeout=HANG_S).json()["models"]
    names = {model["modelName"] for model in registered}
    settings = {
        "SD_PORT": str(port),
        "SD_INFERENCE_URL": reached["inference_url"],
        "SD_MANAGEMENT_URL": reached["management_url"],
        "SD_METRICS_URL": reached["metrics_url"],
        "SD_ARCHIVES": ",".join(f"{task}={task if task in names else COMBINED}" for task in TASKS),
    }
    output = folder / f"proxy-{port}.out"
    with output.open("wb") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "proxy"], cwd=HOME, env=os.environ | settings | variables,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: _listens(port) or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        yield dataclasses.replace(instance, url=f"http://127.0.0.1:{port}", proxy_output=output)
    finally:
        process.terminate()
        process.wait(HANG_S)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Any, seconds: float = HANG_S) -> None:
    """Waits until `condition()` holds; fails after a bound that only a hang reaches."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
