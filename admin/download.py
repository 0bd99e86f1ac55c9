"""Brings a model's files here before a worker needs them.

`python -m admin.download MODEL` downloads a hub model with progress bars. It is a process of its own, since it imports
diffusers.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admin import leash
from admin.paths import HOME, installation
from admin.probe import Device, find_device
from handlers.config import HandlerConfig
from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.hub import fetch, fetch_vae
from handlers.pipelines.sources import ModelSource, resolve_model


@dataclass(frozen=True)
class Prepared:
    """What handler settings stand for on this machine, with every file in its place.

    Attributes:
        device: the one that the workers will choose.
        sources: the model, then, where there is one, the inpainting model.
        paths: where each one's files are: a folder, or a single file.
    """

    device: Device
    sources: list[ModelSource]
    paths: list[Path]


def prepare(settings: Mapping[str, Any], installed: Installation) -> Prepared:
    """Finds the device and the models of handler settings, and downloads what is missing, so that no worker has to.

    Raises ModelError.
    """
    config = HandlerConfig.from_mapping(settings)
    sources = [resolve_model(name, installed) for name in (config.model, config.inpainting_model) if name]
    device = find_device(config.device, config.dtype)
    half = device.dtype != "float32"
    paths = [download(source, installed, half, config.allow_pickle) for source in sources]
    if config.vae:
        download(ModelSource(config.vae, ""), installed, half, config.allow_pickle, is_vae=True)
    return Prepared(device, sources, paths)


def download(
    source: ModelSource, installed: Installation, half: bool = False, allow_pickle: bool = False, is_vae: bool = False
) -> Path:
    """`fetch` in a process of its own, which shows its progress: this one stays without torch. Raises ModelError."""
    if source.is_local:
        return Path(source.location)
    command = ["admin.download", source.location]
    command += ["--half"] * half + ["--allow-pickle"] * allow_pickle + ["--vae"] * is_vae
    environment = {**os.environ, "SD_HOME": str(installed.home)}
    done = leash.run(command, cwd=HOME, env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        raise ModelError(done.stdout.strip() or f"{source.location} could not be downloaded.")
    return Path(done.stdout.strip().splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m admin.download", description="Downloads a model from the hub.")
    parser.add_argument("model", help="a hub id")
    parser.add_argument("--half", action="store_true", help="its half-precision weights, if it has them")
    parser.add_argument("--allow-pickle", action="store_true", help="also weights that can run programs")
    parser.add_argument("--vae", action="store_true", help="it is a VAE by itself")
    options = parser.parse_args(argv)
    try:
        if options.vae:
            print(fetch_vae(options.model, installation(), options.allow_pickle))
        else:
            print(fetch(ModelSource(options.model, ""), installation(), options.half, options.allow_pickle))
    except KeyboardInterrupt:
        return 130
    except ModelError as error:
        print(error)  # on the standard output: the other one has the progress bars
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
