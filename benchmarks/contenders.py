"""Who is measured beside whom: this server and its peers as processes, of which one is awake at a time."""

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from admin.paths import HOME
from benchmarks.timing import row
from launch.machine import free_ports
from launch.processes import MALLOC

OURS, ONE_BY_ONE = "this server, --engine torch", "Flask, 1 thread"
IN_OPENVINO = "this server, --engine openvino"
START_SECONDS = 120
# name: package, module with its options, path of a request
PEERS = {
    ONE_BY_ONE: ("flask", ("flask_lock",), "/{task}"),
    "LitServe, batches of 8": ("litserve", ("litserve_batch",), "/predict"),
}


class PeerFailed(Exception):
    """A peer does not start or does not answer; the message says why."""


@dataclass
class Contender:
    """`url` is where requests go, with {task} for a request's task; `process` is the root of its processes."""

    name: str
    url: str
    process: psutil.Popen
    sleeps: bool = True  # this server does not: TorchServe watches its workers by the clock

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Lets it run; the others use no cores meanwhile, e.g. for asking their queues."""
        self._each("resume")
        try:
            yield
        finally:
            self._each("suspend")

    def memory(self) -> float:
        """Physical memory of all its processes, shared pages divided among those that share them, in MB (Linux)."""
        megabytes = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                megabytes += process.memory_full_info().pss / 1e6
        return megabytes

    def end(self) -> None:
        processes = self._tree()
        for call in ("resume", "terminate"):
            self._each(call)
        _, alive = psutil.wait_procs(processes, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)

    def _tree(self) -> list[psutil.Process]:
        if not self.process.is_running():
            return []
        return [self.process, *self.process.children(recursive=True)]

    def _each(self, call: str) -> None:
        if self.sleeps:
            for process in self._tree():
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(process, call)()


def in_each(contenders: list[Contender], work: Callable[[Contender], Any], first: int = 0) -> dict[str, Any]:
    """What `work` gives for each by name, one after the other; a peer that fails is told of and taken off the list.

    Args:
        first: where in the list it begins: on this machine the first of a round had an advantage of 5 to 10 %.
    """
    results = {}
    for contender in contenders[first:] + contenders[:first]:
        try:
            with contender.awake():
                results[contender.name] = work(contender)
        except httpx.HTTPError as error:
            if contender.name == OURS:
                raise
            row(contender.name, f"not measured any further: {error!r}")
            contenders.remove(contender)
    return {contender.name: results[contender.name] for contender in contenders}


@contextlib.contextmanager
def peers(model: Path, threads: int, folder: Path) -> Iterator[list[Contender]]:
    """The peers that could be started, asleep. They end with the block."""
    with contextlib.ExitStack() as running:
        found = []
        for name, (package, module, path) in PEERS.items():
            try:
                found.append(running.enter_context(_peer(name, module, path, model, threads, folder)))
                row(name, f"{package} {importlib.metadata.version(package)}")
            except PeerFailed as error:
                row(name, f"not measured: {error}")
        yield found


@contextlib.contextmanager
def _peer(
    name: str, module: tuple[str, ...], path: str, model: Path, threads: int, folder: Path
) -> Iterator[Contender]:
    port = free_ports(1)[0]
    url, output = f"http://127.0.0.1:{port}", folder / f"{port}.out"
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(threads), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", f"benchmarks.peers.{module[0]}", str(model), str(port), *module[1:]]
    with output.open("wb") as log:
        # in a group of its own: Ctrl-C reaches this process alone, which then ends the others
        process = psutil.Popen(
            command, cwd=HOME, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    contender = Contender(name, url + path, process)
    try:
        _wait_ready(contender, f"{url}/health", output)
        with contender.awake():
            pass
        yield contender
    finally:
        contender.end()


def _wait_ready(contender: Contender, health: str, output: Path) -> None:
    """Raises PeerFailed with the last line of its output if it ends, or never serves."""
    end = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(health, timeout=START_SECONDS, trust_env=False).is_success:
                return
        if contender.process.poll() is not None or time.monotonic() > end:
            lines = output.read_text(errors="replace").strip().splitlines()
            raise PeerFailed(lines[-1] if lines else "it says nothing")
        time.sleep(0.1)
