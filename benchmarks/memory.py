"""The memory that large images leave behind, and that small requests add up to: `python -m benchmarks.memory`.

A real server with the embedded model gets large init images, all at once; one with a tiny model, which is quicker, gets
small requests. The worker's RSS.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import row
from tests.support import tiny_models
from tests.support.running import Running, running
from tests.support.samples import b64, half_mask, sample_image

LARGE, SIDE = 24, 4000  # images of 16 million pixels
REST_S = 10
SMALL, CLIENTS = 2000, 4
EVERY = 20  # small requests between two readings of RSS
TASKS = ("txt2img", "img2img", "masking")
SIZE = 64  # pixels


def rss(server: Running) -> float:
    """The worker's, in MB."""
    return float(server.workers()[0].memory_info().rss / 1e6)


@contextmanager
def peak(server: Running) -> Iterator[list[float]]:
    """The highest RSS meanwhile, in MB, as the list's one number."""
    highest, ended = [rss(server)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            highest[0] = max(highest[0], rss(server))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield highest
    finally:
        ended.set()
        watching.join()


def small(server: Running, number: int) -> None:
    task = TASKS[number % len(TASKS)]
    fields: dict[str, Any] = {"seed": number + 1, "num_inference_steps": 1, "strength": 1}
    if task == "txt2img":
        fields |= {"width": SIZE, "height": SIZE}
    else:
        fields |= {"init_image": b64(sample_image(SIZE, SIZE))}
    if task == "masking":
        fields |= {"mask_image": b64(half_mask(SIZE, SIZE))}
    server.images(task, **fields)


def large_ones(server: Running) -> None:
    image = b64(sample_image(SIDE // 10, SIDE // 10).resize((SIDE, SIDE)), format="JPEG")
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (100, 100, 400, 400))  # of which a crop is generated, and pasted into the whole image
    sent = {"img2img": {"init_image": image}, "masking": {"init_image": image, "mask_image": b64(mask)}}

    def one(number: int) -> None:
        task = ("img2img", "masking")[number % 2]
        server.images(task, num_inference_steps=1, strength=1, **sent[task])

    time.sleep(REST_S)
    before = rss(server)
    with peak(server) as highest, ThreadPoolExecutor(LARGE) as pool:
        list(pool.map(one, range(LARGE)))
    time.sleep(REST_S)
    after = rss(server)
    row(
        f"{LARGE} init images of {SIDE} x {SIDE} at once",
        f"{before:.0f} MB before, {highest[0]:.0f} at most, {after:.0f} after {REST_S} s ({after / before - 1:+.0%})",
    )


def small_ones(server: Running) -> None:
    counts, read = [0], [rss(server)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        for begin in range(0, SMALL, EVERY):
            list(pool.map(lambda number: small(server, number), range(begin, begin + EVERY)))
            counts.append(begin + EVERY)
            read.append(rss(server))
    half = len(read) // 2
    slopes = [np.polyfit(counts[part], read[part], 1)[0] * 1000 for part in (slice(None), slice(half, None))]
    row(
        f"{SMALL} small requests of all tasks",
        f"{read[0]:.0f} MB before, {read[half]:.0f} after a half, {read[-1]:.0f} after all; linear fit "
        f"{slopes[0]:+.1f} MB per 1,000, in the second half {slopes[1]:+.1f}",
    )


def warm_up(server: Running) -> None:
    """What is used for the first time is loaded and stays."""
    for number in range(5 * len(TASKS)):
        small(server, number)


def main() -> None:
    print("| what | the worker's RSS |\n|---|---|")
    most = str(2 * LARGE)  # half of them for one client
    with tempfile.TemporaryDirectory(prefix="sd-bench-") as folder, running(Path(folder), SD_MAX_OPEN=most) as server:
        warm_up(server)
        large_ones(server)
    with tempfile.TemporaryDirectory(prefix="sd-bench-") as folder:
        model = tiny_models.save_with_checker(Path(folder, "model"))
        with running(Path(folder), "--model", str(model)) as server:
            warm_up(server)
            small_ones(server)


if __name__ == "__main__":
    main()
