"""The options of a command line that say what an archive serves, and how."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from handlers.config import ENGINES, HandlerConfig
from handlers.errors import ModelError
from handlers.pipelines.sources import loras

TRANSFORMERS = (".safetensors", ".gguf")


def add_handler_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what an archive serves, and how: the keys of HandlerConfig that users change."""
    parser.add_argument("--model", default="default", help="a hub id, the path of a model folder or .safetensors file")
    parser.add_argument("--inpainting-model", default="", help="another model for masking")
    parser.add_argument(
        "--vae", default="", help="a VAE instead of the model's own: a hub id, a folder or a .safetensors file"
    )
    parser.add_argument(
        "--transformer", default="", help="a transformer instead of the model's own: a .safetensors or .gguf file"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        help="a LoRA to merge into the weights, FILE or FILE=SCALE; may be repeated",
    )
    parser.add_argument("--lora-dir", default="", help="the folder of the LoRAs that prompts may name (default: loras)")
    parser.add_argument(
        "--embeddings-dir", default="", help="the folder of the embeddings that prompts may name (default: embeddings)"
    )
    parser.add_argument("--controlnets-dir", default="", help="the folder of ControlNets' files (default: controlnets)")
    parser.add_argument(
        "--upscalers-dir", default="", help="the folder of upscalers' files, such as ESRGAN (default: upscalers)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16 or bfloat16 (default: %(default)s)")
    parser.add_argument("--low-memory", action="store_true", help="keep only the denoiser on the GPU")
    parser.add_argument(
        "--float8-text-encoders", action="store_true",
        help="store T5 and the Qwen models, which read the prompts of transformers, in 8 bits",
    )  # fmt: skip
    parser.add_argument("--cuda-graphs", action="store_true", help="run the UNet as CUDA graphs on a GPU")
    parser.add_argument(
        "--channels-last",
        action="store_const",
        const="always",
        default="auto",
        help="keep the UNet and the VAE in the channels-last layout (default: where it is the faster one)",
    )
    parser.add_argument(
        "--no-channels-last", action="store_const", const="never", dest="channels_last", default="auto",
        help="keep them in the other layout",
    )  # fmt: skip
    parser.add_argument(
        "--engine", default="auto", choices=ENGINES,
        help="torch, openvino, or auto, which is OpenVINO on an x86-64 CPU; on a CPU, torch is exact and auto fast "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--allow-pickle", action="store_true", help="also load weights that can run any program")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_handler_options` as keys of HandlerConfig, with absolute paths.

    Raises ModelError for a file or folder that is not there.
    """
    given = {key.name: getattr(options, key.name) for key in fields(HandlerConfig) if hasattr(options, key.name)}
    return given | {
        "model": _absolute(options.model),
        "inpainting_model": _absolute(options.inpainting_model),
        "vae": _absolute(options.vae),
        "transformer": _transformer(options.transformer),
        "lora_dir": _folder(options.lora_dir),
        "embeddings_dir": _folder(options.embeddings_dir),
        "controlnets_dir": _folder(options.controlnets_dir),
        "upscalers_dir": _folder(options.upscalers_dir),
        "lora": "\n".join(f"{file}={scale:g}" for file, scale in loras("\n".join(options.lora))),
    }


def _absolute(name: str) -> str:
    """An existing path as an absolute one, since the worker runs in another folder. Hub ids stay as they are."""
    there = Path(name).expanduser()
    return str(there.resolve()) if name not in ("", "default") and there.exists() else name


def _transformer(name: str) -> str:
    """Raises ModelError for one that is not there, or of another kind."""
    there = Path(name).expanduser()
    if name and (not there.is_file() or there.suffix not in TRANSFORMERS):
        raise ModelError(f"There is no transformer at {name}: give the path of a {' or '.join(TRANSFORMERS)} file.")
    return _absolute(name)


def _folder(name: str) -> str:
    """Raises ModelError for one that is not there."""
    if name and not Path(name).expanduser().is_dir():
        raise ModelError(f"There is no folder {name}: make it, or give another one.")
    return _absolute(name)
