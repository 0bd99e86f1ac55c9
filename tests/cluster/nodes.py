"""Nodes of a cluster on this machine, and clients that keep them busy."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from launch.machine import free_ports
from tests.support.running import HANG_S, Running, running, wait_for
from tests.support.samples import b64, sample_image

CLIENTS = 6
MOST_REQUESTS = 2000  # of all clients together: a bound that only a hang reaches


class Node:
    """A server of ours at an address that stays, with its whole tree of processes."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._model = model
        self.port = free_ports(1)[0]
        self._folder, self.name = folder, folder.name
        self._running = contextlib.ExitStack()
        self._instance: Running | None = None

    def start(self) -> None:
        """Returns when it is ready."""
        self._folder.mkdir(exist_ok=True)
        # one thread each: three servers share this machine's cores
        variables = {"SD_LEAVE_S": "5", "OMP_NUM_THREADS": "1", "SD_NODE": self.name}
        arguments = ("--model", str(self._model))
        self._instance = self._running.enter_context(running(self._folder, *arguments, port=self.port, **variables))

    def stop(self) -> None:
        """As an operator does: it finishes what it has begun."""
        assert self._instance is not None
        self._instance.process.send_signal(signal.SIGTERM)
        assert self._instance.process.wait(HANG_S) == 0, self._instance.output.read_text()
        self._running.close()

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes, as if the machine had failed."""
        assert self._instance is not None
        process = self._instance.process
        # server.py first, which would bring the others back
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._instance is not None
        self._instance.process.wait(HANG_S)
        self._running.close()

    def close(self) -> None:
        if self._instance is not None and self._instance.process.poll() is None:
            self.signal(signal.SIGCONT)
        self._running.close()

    def answered(self) -> float:
        """The images that it has answered with since it was started."""
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=HANG_S).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(
            sample.value
            for sample in samples
            if sample.name == "sd_requests_total"
            and sample.labels["status"] == "200"
            and sample.labels["route"] in ("/txt2img", "/img2img")
        )


@contextlib.contextmanager
def started(folder: Path, model: Path, number: int) -> Iterator[list[Node]]:
    """Nodes that are started side by side, and end with the block."""
    nodes = [Node(folder / f"node{i + 1}", model) for i in range(number)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.start, nodes))
        yield nodes
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Node.close, nodes))


@dataclass
class Load:
    """What clients got that ask again and again; `events`: whether some of them ask for a stream of events."""

    url: str
    events: bool = False
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    answered: list[int] = field(default_factory=lambda: [0] * CLIENTS)
    _ended: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=count)

    def wait_for_everyone(self, times: int = 2) -> None:
        """Until each client has had so many more answers: whatever was in flight at this moment is then decided."""
        before = list(self.answered)
        wait_for(lambda: all(now >= then + times for now, then in zip(self.answered, before, strict=True)))

    def ask(self, client: int) -> None:
        """One client's loop: small requests, and some that are as large as a photograph."""
        image = b64(sample_image(700, 500))
        with httpx.Client(timeout=HANG_S) as http:
            while not self._ended.is_set() and (number := next(self._numbers)) < MOST_REQUESTS:
                fields: dict[str, Any] = {"prompt": "a red apple", "num_inference_steps": 8, "seed": 1 + number}
                task, headers = "txt2img", {}
                if number % 3 == 0:
                    task, fields["init_image"] = "img2img", image
                if self.events and number % 4 == 0:
                    headers = {"Accept": "text/event-stream"}
                begin = time.monotonic()
                try:
                    answer = http.post(f"{self.url}/{task}", data=fields, headers=headers)
                    if answer.status_code != 200 or f'"seed": {1 + number},' not in answer.text:
                        self.failures.append(f"{task}: {answer.status_code} {answer.text[-200:]}")
                except httpx.TransportError as error:
                    self.failures.append(f"{task}: {error!r}")
                self.seconds.append(time.monotonic() - begin)
                self.answered[client] += 1

    def end(self) -> None:
        self._ended.set()


@contextlib.contextmanager
def load(url: str, events: bool = False) -> Iterator[Load]:
    """Clients that ask for as long as the context lasts, and are then answered to the end."""
    clients = Load(url, events)
    threads = [threading.Thread(target=clients.ask, args=(i,), daemon=True) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield clients
    finally:
        clients.end()
        for thread in threads:
            thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a client was never answered"
