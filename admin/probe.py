"""Which device this machine has, for programs that do without torch.

`python -m admin.probe` prints it as JSON, in a process of its own that imports torch.
"""

import argparse
import importlib.util
import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from admin import leash
from admin.paths import HOME
from handlers.errors import ModelError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of a number, by its dtype


@dataclass(frozen=True)
class Device:
    """The device that a worker will choose: its type, its dtype, its free memory (None for a CPU)."""

    device: str
    dtype: str
    free_bytes: int | None


def torch_build() -> dict[str, Any]:
    """What torch's version.py says, read without importing torch; empty where torch is missing."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))


def find_device(device: str, dtype: str) -> Device:
    """The device that these settings mean here. Raises ModelError for one that is not there."""
    build = torch_build()
    no_gpu = not (build.get("cuda") or build.get("hip") or sys.platform == "darwin")
    if (device == "cpu" or (device == "auto" and no_gpu)) and dtype in ("auto", *ITEM_BYTES):
        return Device("cpu", "float32" if dtype == "auto" else dtype, None)
    return ask_torch(device, dtype)


def ask_torch(device: str, dtype: str) -> Device:
    """Asks a process with torch, so that this one does without it. Raises ModelError."""
    done = leash.run(["admin.probe", "--device", device, "--dtype", dtype], cwd=HOME, capture_output=True)
    if done.returncode:
        raise ModelError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "torch cannot be started.")
    return Device(**json.loads(done.stdout))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m admin.probe", description="Prints the device of this machine.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args(argv)
    from handlers.hardware.device import available_bytes, choose_device, choose_dtype

    try:
        device = choose_device(options.device, None)
        dtype = str(choose_dtype(options.dtype, device)).removeprefix("torch.")
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(Device(device.type, dtype, available_bytes(device)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
