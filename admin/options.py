"""The options of a command line that say what an archive serves, and how."""

import argparse
from pathlib import Path
from typing import Any

from handlers.pipelines.sources import loras


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
