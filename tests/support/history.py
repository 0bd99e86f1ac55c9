"""Clients that write down what they asked for and what they got, and what must hold of that whatever happens."""

import base64
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.support.running import HANG_S
from tests.support.samples import b64, sample_image

SEEDS = (1, 2, 3)
STEPS = 15
FIELDS = {"prompt": "a house", "num_inference_steps": STEPS}
MERGED = 3  # by how much a value of an image may differ from that of another run, in another batch
PHOTO = b64(sample_image(400, 300))
MASK = Image.new("L", (400, 300))
MASK.paste(255, (40, 40, 80, 80))


class Refused(Exception):
    """An answer that is a failure."""

    def __init__(self, answer: httpx.Response | None = None, status: int = 0, text: str = "") -> None:
        super().__init__(answer.text if answer is not None else text)
        self.status = answer.status_code if answer is not None else status


class Gone(Exception):
    """A job that nobody knows any more."""


def _json(answer: httpx.Response) -> Any:
    if answer.status_code >= 300:
        raise Refused(answer)
    return answer.json()


def native(url: str, seed: int, task: str = "txt2img", **fields: Any) -> list[str]:
    answer = _json(httpx.post(f"{url}/{task}", json=FIELDS | {"seed": seed} | fields, timeout=HANG_S))
    return [image["base64"] for image in answer["images"]]


def crop(url: str, seed: int) -> list[str]:
    return native(url, seed, "masking", init_image=PHOTO, mask_image=b64(MASK), mask_padding=16)


def lora(url: str, seed: int) -> list[str]:
    return native(url, seed, prompt="a house <lora:ink:2>")


def other_model(url: str, seed: int) -> list[str]:
    return native(url, seed, model="other")


def stream(url: str, seed: int) -> list[str]:
    headers = {"Accept": "text/event-stream"}
    answer = httpx.post(f"{url}/txt2img", json=FIELDS | {"seed": seed}, headers=headers, timeout=HANG_S)
    if answer.status_code != 200:  # a full server refuses it before its head
        raise Refused(answer)
    events = [part.partition("\ndata: ") for part in answer.text.split("\n\n") if part.startswith("event: ")]
    ends = [(name, data) for name, _, data in events if name in ("event: result", "event: error")]
    assert len(ends) == 1 and events[-1][0] == ends[0][0], answer.text[-500:]  # answered once, and nothing after it
    told = json.loads(ends[0][1])
    if told["status"] != "success":
        raise Refused(status=told["code"], text=told["message"])
    return [image["base64"] for image in told["images"]]


def job(url: str, seed: int) -> list[str]:
    told = _json(httpx.post(f"{url}/v1/jobs", json=FIELDS | {"kind": "txt2img", "seed": seed}, timeout=HANG_S))
    while told["status"] in ("queued", "in_progress"):
        answer = httpx.get(f"{url}/v1/jobs/{told['id']}?wait=20", timeout=HANG_S)
        if answer.status_code == 404:
            raise Gone
        told = _json(answer)
    if told["status"] != "completed":
        raise Refused(status=500, text=str(told["error"]))
    files = [httpx.get(url + image["url"], timeout=HANG_S) for image in told["images"]]
    return [base64.b64encode(file.content).decode() for file in files]


def openai(url: str, seed: int) -> list[str]:
    fields = {"prompt": "a house", "seed": seed, "steps": STEPS, "size": "64x64"}
    answer = _json(httpx.post(f"{url}/v1/images/generations", json=fields, timeout=HANG_S))
    return [image["b64_json"] for image in answer["data"]]


def a1111(url: str, seed: int) -> list[str]:
    fields = {"prompt": "a house", "seed": seed, "steps": STEPS, "width": 64, "height": 64}
    images: list[str] = _json(httpx.post(f"{url}/sdapi/v1/txt2img", json=fields, timeout=HANG_S))["images"]
    return images


Kind = Callable[[str, int], list[str]]
KINDS: Sequence[Kind] = (native, stream, job, openai, a1111, crop, lora)


@dataclass
class Asked:
    """A request.

    Attributes:
        outcome: `answered`, `failed`, or `unknown` where the connection broke.
        problem: what a failure said, or how the connection broke.
    """

    kind: str
    seed: int
    began: float
    ended: float = 0.0
    outcome: str = ""
    status: int = 0
    problem: str = ""
    images: list[np.ndarray] = field(default_factory=list)


class History:
    """All requests of all clients, in the order in which they were asked."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._lock = threading.Lock()

    def ask(self, url: str, kind: Kind, seed: int) -> None:
        asked = Asked(kind.__name__, seed, time.monotonic())
        with self._lock:
            self.asked.append(asked)
        try:
            asked.images = [pixels(image) for image in kind(url, seed)]
            asked.outcome, asked.status = "answered", 200
        except Refused as failure:
            asked.outcome, asked.status, asked.problem = "failed", failure.status, str(failure)
        except (httpx.TransportError, Gone) as error:
            asked.outcome, asked.problem = "unknown", repr(error)
        except Exception as error:  # whatever else it was, the check tells it
            asked.problem = repr(error)
        asked.ended = time.monotonic()

    @contextmanager
    def clients(self, url: str, count: int, kinds: Sequence[Kind] = KINDS) -> Iterator[None]:
        """So many clients ask one thing after the other, meanwhile. Returns when each of them has its last answer."""
        stop = threading.Event()

        def client(number: int) -> None:
            for step in cycle(range(len(kinds) * len(SEEDS))):
                if stop.is_set():
                    return
                self.ask(url, kinds[(number + step) % len(kinds)], SEEDS[step % len(SEEDS)])

        threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(HANG_S)
                assert not thread.is_alive(), "a client hangs"

    def outcomes(self, since: float = 0.0) -> Counter[str]:
        return Counter(asked.outcome for asked in self.asked if asked.began >= since)

    def check(self) -> None:
        """Each request has an outcome, and what was asked for in the same way has the same image."""
        lost = [asked for asked in self.asked if not asked.outcome]
        assert not lost, [(asked.kind, asked.problem) for asked in lost[:5]]
        first: dict[tuple[str, int], np.ndarray] = {}
        for asked in self.asked:
            if asked.outcome == "answered":
                assert len(asked.images) == 1, asked.kind
                expected = first.setdefault((asked.kind, asked.seed), asked.images[0])
                difference = np.abs(asked.images[0] - expected).max()
                assert difference <= MERGED, (asked.kind, asked.seed, difference)
        for (kind, seed), image in first.items():  # and what was asked for in another way has another one
            other = first.get((kind, seed % len(SEEDS) + 1))
            assert other is None or np.abs(image - other).max() > MERGED, kind


def pixels(image: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")).astype(int)
