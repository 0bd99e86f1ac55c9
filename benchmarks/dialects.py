"""What OpenAI's dialect adds to a native request, and what kept jobs take: `python -m benchmarks.dialects`.

Native and OpenAI requests take turns, so both meet the machine in the same state. A photograph is noise, in a PNG of so
many bytes, of which a small part is masked: its answer has about as many bytes.
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from PIL import Image

from benchmarks.timing import difference, in_turns, row
from tests.support.running import HANG_S, Running, running
from tests.support.samples import file_bytes, sample_image

KEPT = 100


def photograph(megabytes: float) -> tuple[bytes, bytes]:
    """A PNG of about this size, and its mask."""
    side = int((megabytes * 1_000_000 / 3) ** 0.5)
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 4, side // 4, side // 4 + 64, side // 4 + 64))
    return file_bytes(sample_image(side, side)), file_bytes(mask)


class Dialects:
    """Requests to the server, one after the other."""

    def __init__(self, server: Running, rounds: int) -> None:
        self.server, self.rounds = server, rounds
        self._http = httpx.Client(base_url=server.url, timeout=HANG_S, trust_env=False)

    def text(self) -> None:
        sent = {"prompt": "a red apple", "seed": 1, "num_inference_steps": 1}
        self._compare(
            "text to image, 1 step", lambda: self._post("/txt2img", json=sent),
            lambda: self._post("/v1/images/generations", json=sent),
        )  # fmt: skip

    def refused(self) -> None:
        """Nothing is generated: only the way there and back."""

        def refused(path: str, name: str) -> None:
            assert self._http.post(path, json={"prompt": "x", name: 99}).status_code == 400

        self._compare(
            "a request that is refused by the worker", lambda: refused("/txt2img", "num_outputs"),
            lambda: refused("/v1/images/generations", "n"),
        )  # fmt: skip

    def masked(self, megabytes: int) -> None:
        image, mask = photograph(megabytes)
        sent = {"prompt": "a red apple", "seed": "1", "num_inference_steps": "1", "strength": "1"}
        native, openai = {"init_image": image, "mask_image": mask}, {"image": image, "mask_image": mask}
        self._compare(
            f"a masked photograph of {len(image) / 1e6:.1f} MB, 1 step",
            lambda: self._post("/masking", data=sent, files=native),
            lambda: self._post("/v1/images/edits", data=sent, files=openai),
        )

    def kept(self, what: str, **request: Any) -> None:
        """The proxy's memory before and after so many jobs, all of which are still kept."""
        before, size = self._proxy().memory_info().rss, 0
        started = [self._http.post("/v1/jobs", **request).json() for _ in range(KEPT)]
        for job in started:
            while job["status"] in ("queued", "in_progress"):
                job = self._http.get(f"/v1/jobs/{job['id']}?wait=60").json()
            size += sum(len(self._http.get(image["url"]).content) for image in job["images"])
        grown = self._proxy().memory_info().rss - before
        row(f"{KEPT} kept jobs, {what}", f"{size / 1e6:.1f} MB of images, {grown / 1e6:+.1f} MB in the proxy")

    def _compare(self, what: str, native: Any, openai: Any) -> None:
        plain, ours = in_turns(self.rounds, native, openai)
        row(what, f"{difference(ours, plain) * 1000:+.1f} ms, native {statistics.median(plain) * 1000:.1f} ms")

    def _post(self, path: str, **request: Any) -> None:
        self._http.post(path, **request).raise_for_status()

    def _proxy(self) -> psutil.Process:
        return next(one for one in self.server.process.children(recursive=True) if "proxy" in one.cmdline())


@contextmanager
def started() -> Iterator[Running]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), SD_MAX_PER_CLIENT=str(2 * KEPT)) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with started() as server:
        dialects = Dialects(server, rounds)
        row("what", "OpenAI's less native, median of the differences")
        row("---", "---")
        dialects.refused()
        dialects.text()
        for megabytes in (1, 10):
            dialects.masked(megabytes)
        dialects.kept("text to image", json={"kind": "txt2img", "prompt": "a red apple", "num_inference_steps": 1})
        image, mask = photograph(1)
        form = {"prompt": "a red apple", "num_inference_steps": "1", "strength": "1", "kind": "masking"}
        dialects.kept("a photograph of 1 MB", data=form, files={"init_image": image, "mask_image": mask})


if __name__ == "__main__":
    main()
