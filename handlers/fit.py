"""Whether a model fits on the accelerator three times, once, or only in low-memory mode. Needs no torch."""

import importlib.util
import json
import math
import runpy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.errors import ModelError
from handlers.sources import variant_of

PACKAGE = Path(__file__).resolve().parent
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# Round figures for Stable Diffusion 1.5 at 512 pixels, on the safe side: what a process takes for itself on a card,
# and what drawing takes beyond the weights
PROCESS_BYTES = 700 * 2**20
DRAWING_BYTES = 3 * 2**30
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What `python -m handlers.device` reports; `free_bytes` is None for a CPU."""

    device: str
    dtype: str
    free_bytes: int | None


@dataclass(frozen=True)
class Fit:
    """How the pipelines are served: `archives` is three or combined; `reason` is a sentence for the user, or empty."""

    archives: str
    low_memory: bool
    reason: str = ""


def torch_build() -> dict[str, Any]:
    """What torch's version.py says, read without importing torch; empty where torch is missing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def find_device(device: str, dtype: str) -> Device:
    """The device that a worker will choose. Raises ModelError for one that is not there."""
    build = torch_build()
    if device == "cpu" or not (build.get("cuda") or build.get("hip") or sys.platform == "darwin"):
        return Device("cpu", "float32" if dtype == "auto" else dtype, None)
    return probe(device, dtype)


def probe(device: str, dtype: str) -> Device:
    """Asks a process with torch, so that this one does without it. Raises ModelError."""
    command = [sys.executable, "-m", "handlers.device", "--device", device, "--dtype", dtype]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    if done.returncode:
        raise ModelError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "torch cannot be started.")
    return Device(**json.loads(done.stdout))


def weight_bytes(model: Path, dtype: str) -> int:
    """The memory of a model's weights in `dtype`: a diffusers folder's, or a single file's."""
    if model.is_file():
        files = [model]
    else:
        files = [file for file in model.glob("*/*") if file.suffix in (".safetensors", ".bin")]
        variant = variant_of((file.relative_to(model).as_posix() for file in files), dtype != "float32")
        # the wanted variant of a component's weights where there is one, else those without one
        chosen = {}
        for file in sorted(files, key=lambda file: (f".{variant}." in file.name, file.suffix == ".safetensors")):
            if f".{variant}." in file.name or file.name.count(".") == 1:
                chosen[file.parent, file.name.replace(f".{variant}.", ".").partition(".")[0]] = file
        files = list(chosen.values())
    return sum(_parameters(file) for file in files) * ITEM_BYTES[dtype]


def _parameters(file: Path) -> int:
    """How many numbers a file of weights holds: by a safetensors file's header, else about, by its size."""
    if file.suffix != ".safetensors":
        return file.stat().st_size // 4
    with file.open("rb") as opened:
        header: Mapping[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def fit(device: Device, weights: int) -> Fit:
    """Chooses for an accelerator by what fits; a CPU's three workers share one copy of the weights."""
    if device.free_bytes is None:
        return Fit("three", False)
    free = device.free_bytes
    about = f"{free / GIB:.1f} GiB are free on the {device.device} device, the weights take {weights / GIB:.1f} GiB"
    if 3 * (weights + PROCESS_BYTES) + DRAWING_BYTES <= free:
        return Fit("three", False, f"A worker for each pipeline: {about}.")
    if weights + PROCESS_BYTES + DRAWING_BYTES <= free:
        return Fit("combined", False, f"One worker for all pipelines: {about}.")
    return Fit("combined", True, f"One worker in low-memory mode: {about}.")
