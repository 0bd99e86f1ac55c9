"""Builds the model archives: `python -m handlers.archive`.

An archive holds the handler code and a model-config.yaml, a few kilobytes; the weights stay where they are.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from handlers.config import HandlerConfig
from handlers.custom_models import CUSTOM, user_folder
from handlers.errors import ModelError
from handlers.fit import Device, find_device
from handlers.request import TASKS
from handlers.sources import download, loras, resolve_model

PACKAGE = Path(__file__).resolve().parent
HOME = PACKAGE.parent
MODEL_STORE = user_folder(HOME) / "model_store"
STAGED = ".staged"  # TorchServe's `--models all` loads everything in the store but hidden names
COMBINED = "stable-diffusion"
VERSION = "1.0"

# TorchServe's side of continuous batching; docs/architecture.md says why each is as it is
FRONTEND = {
    "minWorkers": 1,
    "maxWorkers": 1,
    "batchSize": 32,
    "maxBatchDelay": 1,
    "responseTimeout": 120,
    "startupTimeout": 900,
    "maxRetryTimeoutInSec": 86_400,
    "jobQueueSize": 64,
    "continuousBatching": True,
}


def tasks_of(name: str) -> tuple[str, ...]:
    """What an archive of this name does: its one task, all of them, or txt2img for a custom model's."""
    if name == COMBINED:
        return TASKS
    return ("txt2img",) if name.startswith(CUSTOM) else (name,)


def build(name: str, store: Path, handler: Mapping[str, Any], version: str = VERSION) -> Path:
    """Builds `store/<name>.mar`, or `store/<name>-<version>.mar` for another version, with torch-model-archiver.

    Args:
        name: a task, COMBINED, or `custom-…`.
        handler: keys of HandlerConfig that differ from their defaults.

    Returns the archive's path. Raises ModelError for a key that is not known.
    """
    settings = {"home": str(HOME), **handler}
    HandlerConfig.from_mapping(settings)
    store.mkdir(parents=True, exist_ok=True)
    entry_point = (name if name == COMBINED else tasks_of(name)[0]).replace("-", "_")
    stem = name if version == VERSION else f"{name}-{version}"
    with tempfile.TemporaryDirectory(prefix="sd-archive-") as scratch:
        staging = Path(scratch, "staging")  # --extra-files copies a folder's contents, so the package gets a parent
        shutil.copytree(PACKAGE, staging / "handlers", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        config_file = Path(scratch, "model-config.yaml")
        config_file.write_text(yaml.safe_dump({**FRONTEND, "handler": settings}, sort_keys=False), encoding="utf-8")
        command = [
            sys.executable, "-m", "model_archiver.model_packaging", "--model-name", stem, "--version", version,
            "--handler", str(PACKAGE / f"{entry_point}.py"), "--extra-files", str(staging),
            "--config-file", str(config_file), "--export-path", str(store), "--force",
        ]  # fmt: skip
        # the archiver works in TMPDIR/<name>, and deletes what it finds there
        environment = {**os.environ, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"torch-model-archiver failed for {name}: {done.stderr.strip()}")
    return store / f"{stem}.mar"


def add_handler_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what an archive serves, and how: those keys of HandlerConfig that people change."""
    parser.add_argument("--model", default="default", help="a hub id, the path of a model folder or .safetensors file")
    parser.add_argument("--inpainting-model", default="", help="another model for masking")
    parser.add_argument("--lora", action="append", default=[], help="a LoRA file to add: FILE or FILE=SCALE")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16 or bfloat16 (default: %(default)s)")
    parser.add_argument("--low-memory", action="store_true", help="keep only the UNet on the card")
    parser.add_argument("--cuda-graphs", action="store_true", help="run the UNet as CUDA graphs on a card")
    parser.add_argument("--channels-last", action="store_true", help="keep the UNet and the VAE in that layout")
    parser.add_argument("--openvino", action="store_true", help="run the UNet in OpenVINO on a CPU")
    parser.add_argument("--allow-pickle", action="store_true", help="load weights that can run any program, too")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The keys of HandlerConfig that the options of `add_handler_options` stand for, with absolute paths.

    Raises ModelError for a LoRA that is not there.
    """
    return {
        "model": _absolute(options.model),
        "inpainting_model": _absolute(options.inpainting_model),
        "lora": "\n".join(f"{file}={scale:g}" for file, scale in loras("\n".join(options.lora))),
        "device": options.device,
        "dtype": options.dtype,
        "low_memory": options.low_memory,
        "cuda_graphs": options.cuda_graphs,
        "channels_last": options.channels_last,
        "openvino": options.openvino,
        "allow_pickle": options.allow_pickle,
    }


def _absolute(name: str) -> str:
    """A path that exists here as an absolute one: the worker runs in another folder. Hub ids stay as they are."""
    there = Path(name).expanduser()
    return str(there.resolve()) if name not in ("", "default") and there.exists() else name


def prepare(settings: Mapping[str, Any]) -> tuple[Device, list[Path]]:
    """Downloads the models that handler settings name, with progress bars, so that no worker has to.

    Returns the device that the workers will choose, and where the models are. Raises ModelError.
    """
    device = find_device(settings["device"], settings["dtype"])
    names = filter(None, (settings["model"], settings["inpainting_model"]))
    sources = [resolve_model(name, HOME, os.environ) for name in names]
    half = device.dtype != "float32"
    return device, [download(source, HOME, half, settings["allow_pickle"]) for source in sources]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m handlers.archive", description="Builds the model archives.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"which of {', '.join(TASKS)}; all, unless named")
    parser.add_argument("--combined", action="store_true", help=f"{COMBINED}.mar, all three behind one worker")
    parser.add_argument("--version", default=VERSION, help=f"another version than {VERSION} goes to {STAGED}/")
    add_handler_options(parser)
    parser.add_argument("--model-store", type=Path, default=MODEL_STORE)
    options = parser.parse_args(argv)
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"unknown task {', '.join(sorted(unknown))}: choose from {', '.join(TASKS)}")
    names = [COMBINED] if options.combined else options.tasks or list(TASKS)
    staged = options.combined or options.version != VERSION
    store = options.model_store / STAGED if staged else options.model_store
    try:
        handler = settings_of(options)
        prepare(handler)
    except ModelError as error:
        parser.exit(1, f"{error}\n")
    for name in names:
        path = build(name, store, handler, options.version)
        print(f"{path} ({path.stat().st_size / 1024:.0f} kB)")


if __name__ == "__main__":
    main()
