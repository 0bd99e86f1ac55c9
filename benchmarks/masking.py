"""Seconds and bytes of masking a photograph of 24 million pixels with a mask of 300 pixels, in turns with a txt2img.

    python -m benchmarks.masking [--rounds 3]

starts a server with the embedded model. The photograph is 6000 x 4000, a JPEG of smooth colours with some grain.
"""

import argparse
import base64
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.timing import in_turns, row
from tests.support.running import Running, running
from tests.support.samples import b64, file_bytes

SIZE, SPOT = (6000, 4000), (3000, 2000, 3300, 2300)


def photograph() -> Image.Image:
    small = Image.fromarray(np.random.default_rng(1).integers(0, 255, (8, 12, 3), dtype=np.uint8))
    grain = np.random.default_rng(2).integers(-4, 5, (SIZE[1], SIZE[0], 1), dtype=np.int16)
    smooth = np.asarray(small.resize(SIZE, Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).ellipse(SPOT, fill=255)
    init = file_bytes(photograph(), "JPEG", quality=85)
    print(f"init image: {len(init) / 1e6:.1f} MB")
    masked = {"init_image": base64.b64encode(init).decode(), "mask_image": b64(mask)}
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "PNG": ("masking", masked),
        "patch": ("masking", masked | {"patch": "true"}),
        "JPEG": ("masking", masked | {"output_format": "jpeg"}),
        "txt2img": ("txt2img", {}),
    }
    sizes: dict[str, int] = {}

    def work(server: Running, name: str) -> None:
        task, fields = requests[name]
        (image,) = server.images(task, seed=1, **fields)
        sizes[name] = len(image["base64"])

    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        times = in_turns(rounds, *(partial(work, server, name) for name in requests))
    for name, taken in zip(requests, times, strict=True):
        seconds = f"{statistics.median(taken):.1f} s ({min(taken):.1f} to {max(taken):.1f})"
        row(name, f"{seconds}, {sizes[name] / 1e6:.2f} MB of base64")


if __name__ == "__main__":
    main()
