"""How long until the service is whole again after a part was killed: `python -m benchmarks.recovery`, a row each.

*Whole* is an image that succeeds; each fault happens while four clients wait for long ones.
"""

import contextlib
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.timing import row
from tests.support.parts import CLIENTS, LONG, parts
from tests.support.running import Running, running, wait_for

TIMES = 3


def generates(server: Running) -> bool:
    with contextlib.suppress(httpx.TransportError):
        fields = {"prompt": "x", "num_inference_steps": 1}
        return httpx.post(f"{server.url}/txt2img", data=fields, timeout=30).status_code == 200
    return False


def told(server: Running) -> None:
    with contextlib.suppress(httpx.TransportError):
        server.post("txt2img", LONG)


def kill(server: Running, part: str) -> tuple[float, float]:
    """Seconds until the last client was told, and until an image succeeds."""
    before = server.activity("txt2img")["unet_forwards"]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(told, server) for _ in range(CLIENTS)]
        wait_for(lambda: server.activity("txt2img")["unet_forwards"] > before)
        begin = time.monotonic()
        parts(server)[part].kill()
        for answer in answers:
            answer.result()
        last = time.monotonic() - begin
    wait_for(lambda: generates(server))
    return last, time.monotonic() - begin


def main() -> None:
    print("| killed | measured |\n|---|---|")
    with (
        tempfile.TemporaryDirectory(prefix="sd-bench-") as folder,
        running(Path(folder)) as server,
    ):
        for part in ("worker", "proxy", "java"):
            last, whole = zip(*(kill(server, part) for _ in range(TIMES if part == "worker" else 1)), strict=True)
            row(
                part,
                f"clients told after {statistics.median(last):.1f} s, whole after {statistics.median(whole):.1f} s",
            )


if __name__ == "__main__":
    main()
