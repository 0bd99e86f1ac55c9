"""What OpenAI's dialect adds to a native request in the proxy, and what kept jobs take.

    python -m benchmarks.dialects [--rounds 50]

TorchServe is played, and answers at once with as many bytes as it got: what the dialect adds would be lost in the time
that an image takes. Native and OpenAI requests take turns. An edit is a form, with an image of so many bytes and a
mask.
"""

import argparse
import base64
import os
import statistics
import time
from typing import Any

import anyio
import httpx
import psutil

from benchmarks.timing import difference, row
from handlers.wire import Result, image_entry
from tests.support.torchserve import client, management, serving

KEPT = 100
MB = 1_000_000


def answering(megabytes: int) -> Any:
    """A TorchServe whose images have this size."""
    line = Result.of_images(
        [image_entry(base64.b64encode(os.urandom(megabytes * MB)).decode(), 1, False, (8, 8))]
    ).line()
    described = Result(b'{"models": [{"model": "x", "tasks": ["txt2img"], "defaults": {}, "limits": {}}]}').line()

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.port != 8080:
            return management(request)
        return serving(described if request.headers["x-task"] == "describe" else line)(request)

    return respond


async def compare(megabytes: int, rounds: int) -> None:
    sent, image = {"prompt": "a red apple", "seed": "1"}, os.urandom(megabytes * MB)
    native = {"data": sent, "files": {"init_image": image, "mask_image": b"mask"}}
    openai = {"data": sent, "files": {"image": image, "mask": b"mask"}}
    times: list[list[float]] = [[], []]
    async with client(answering(megabytes)) as http:
        for _ in range(rounds + 1):
            for taken, (path, request) in zip(times, (("/masking", native), ("/v1/images/edits", openai)), strict=True):
                begin = time.perf_counter()
                (await http.post(path, **request)).raise_for_status()  # type: ignore[arg-type]
                taken.append(time.perf_counter() - begin)
    plain, ours = (taken[1:] for taken in times)  # the first round warms up
    row(
        f"an edit of {megabytes} MB, with an answer of {megabytes} MB",
        f"{difference(ours, plain) * 1000:+.1f} ms, native {statistics.median(plain) * 1000:.1f} ms",
    )


async def kept(megabytes: int) -> None:
    """The memory that so many jobs take, with an image each."""
    process = psutil.Process()
    async with client(answering(megabytes), max_per_client=2 * KEPT) as http:
        before = process.memory_info().rss
        for _ in range(KEPT):
            job = (await http.post("/v1/jobs", json={"kind": "txt2img", "prompt": "a red apple"})).json()
            while job["status"] != "completed":
                job = (await http.get(f"/v1/jobs/{job['id']}?wait=60")).json()
        grown = process.memory_info().rss - before
    row(f"{KEPT} kept jobs with an image of {megabytes} MB", f"{grown / MB:.0f} MB")


async def measure(rounds: int) -> None:
    await kept(1)  # first, before there is freed memory that it could use
    row("what", "OpenAI's less native, median of the differences")
    row("---", "---")
    for megabytes in (1, 10):
        await compare(megabytes, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    anyio.run(measure, parser.parse_args().rounds)


if __name__ == "__main__":
    main()
