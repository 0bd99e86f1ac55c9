"""What one request costs over the in-process pipeline, and what a large init image adds."""

import base64
import statistics
import zlib
from itertools import count
from typing import Any
from urllib.parse import urlencode

import httpx

from benchmarks.in_process import InProcess
from benchmarks.timing import difference, in_turns, ratio, row, seconds
from benchmarks.workload import text_to_image
from handlers.imaging.files import open_image
from handlers.wire import COMBINED
from tests.support.samples import file_bytes, sample_image


class Overhead:
    """Requests to the server at `url`, one after the other, beside the pipeline of the same model."""

    def __init__(self, url: str, in_process: InProcess, rounds: int, name: str = "overhead") -> None:
        self.url, self.in_process, self.rounds, self.name = url, in_process, rounds, name
        self._http = httpx.Client(timeout=600, trust_env=False)
        self._numbers = count()

    def measure(self, size: int, steps: int) -> None:
        """A request's time less the in-process pipeline's."""
        served, plain = in_turns(
            self.rounds, lambda: self._request(size, steps), lambda: self.in_process.generate(size, steps)
        )
        row(
            f"{self.name}, {size} px, {steps} {'step' if steps == 1 else 'steps'}",
            f"{difference(served, plain) * 1000:+.0f} ms a request, {ratio(served, plain):.2f} × the in-process "
            f"pipeline ({statistics.median(plain) * 1000:.0f} ms)",
        )

    def floor(self, torchserve: str) -> None:
        """What the way there and back costs where nothing is generated: the whole of it, and TorchServe's part.

        Args:
            torchserve: its inference address.
        """

        def refused() -> None:
            answer = self._http.post(f"{self.url}/txt2img", data={"prompt": "x", "width": 1})
            assert answer.status_code == 400, answer.text

        def described() -> None:
            headers = {"X-Task": "describe", "Content-Type": "application/octet-stream"}
            self._http.post(f"{torchserve}/predictions/{COMBINED}", headers=headers, content=b"").raise_for_status()

        whole, part = in_turns(5 * self.rounds, refused, described)
        row(
            "a request that is refused by the worker",
            f"{statistics.median(whole) * 1000:.1f} ms; one to TorchServe itself, which its worker answers at once, "
            f"{statistics.median(part) * 1000:.1f} ms",
        )

    def init_image(self, megabytes: int) -> None:
        """A small image in a file of this size, against the same image in a small file."""
        small = file_bytes(sample_image())
        padding = bytes(megabytes * 1_000_000)
        chunk = b"prVt" + padding
        end = small.rindex(b"IEND") - 4
        large = (
            small[:end] + len(padding).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + small[end:]
        )
        bodies = [_form({"init_image": base64.b64encode(data).decode()}) for data in (large, small)]
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        sends = (lambda body=body: self._post("img2img", content=body, headers=headers) for body in bodies)
        served, plain = in_turns(self.rounds, *sends)
        side = int((megabytes * 1_000_000 / 3) ** 0.5)
        photo = file_bytes(sample_image(side, side))
        decode = min(seconds(lambda: open_image(photo, "init_image", 10**9)) for _ in range(5))
        row(
            f"init image of {megabytes} MB",
            f"{difference(served, plain) * 1000:+.0f} ms against one of {len(small) / 1000:.0f} kB; decoding a noisy "
            f"{side} × {side} PNG takes {decode * 1000:.0f} ms more",
        )

    def _request(self, size: int, steps: int) -> None:
        request = text_to_image(size, steps, next(self._numbers))
        self._post(request.task, data=request.fields)

    def _post(self, task: str, **body: Any) -> None:
        self._http.post(f"{self.url}/{task}", **body).raise_for_status()


def _form(fields: dict[str, Any]) -> bytes:
    """A form as a browser encodes it, outside of what is timed."""
    return urlencode(fields | {"prompt": "x", "seed": 1, "num_inference_steps": 2, "strength": 1.0}).encode()
