"""Whether a model fits on the accelerator, or only in low-memory mode. Imports no torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from admin.probe import ITEM_BYTES, Device
from handlers.errors import ModelError
from handlers.pipelines.hub import PICKLED, WEIGHTS, variant_of

# Rough figures for Stable Diffusion 1.5 at 512 pixels, on the safe side: the memory of a process on a GPU, and the
# memory for generating beyond the weights
PROCESS_BYTES = 700 * 2**20
GENERATING_BYTES = 3 * 2**30
FLOAT8_SHARE = 0.65  # of T5's memory in bfloat16, whose embeddings, norms and one layer in three stay as they are
GIB = 2**30
SHARE = 0.9  # of a machine's memory that models may take
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Placement:
    """How the model is served; `reason` is a sentence for the user, or empty."""

    low_memory: bool
    reason: str = ""


def weight_bytes(model: Path, dtype: str, float8_text_encoders: bool = False) -> int:
    """The memory of a model's weights in `dtype`: a diffusers folder's, or a single file's.

    Raises ModelError for a file without weights.
    """
    files = [model] if model.is_file() else _weight_files(model, dtype)
    narrow = _language_models(model) if float8_text_encoders else ()
    numbers = sum(_parameters(file) * (FLOAT8_SHARE if file.parent.name in narrow else 1) for file in files)
    return int(numbers * ITEM_BYTES[dtype])


def _language_models(model: Path) -> list[str]:
    """The text encoders that --float8-text-encoders is for: those that are not CLIP's."""
    index = model / "model_index.json"
    kinds = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return [name for name, kind in kinds.items() if name.startswith("text_encoder") and "CLIP" not in str(kind)]


def _weight_files(folder: Path, dtype: str) -> list[Path]:
    """The files that are loaded: of the wanted variant, otherwise those without a variant, otherwise a pickle."""
    variant = variant_of((file.relative_to(folder).as_posix() for file in folder.glob("*/*")), dtype != "float32")
    chosen: list[Path] = []
    for component in (entry for entry in folder.iterdir() if entry.is_dir()):
        matches = {file: WEIGHTS.fullmatch(file.name) for file in component.iterdir()}
        of_variant: dict[str | None, list[Path]] = {}
        for file, match in matches.items():
            if match:
                of_variant.setdefault(match["variant"], []).append(file)
        pickled = [file for file in matches if file.suffix in PICKLED]
        chosen += of_variant.get(variant) or of_variant.get(None) or pickled[:1]
    return chosen


def _parameters(file: Path) -> int:
    """The number of parameters in a file: from a safetensors header, otherwise estimated from the size."""
    size = file.stat().st_size
    if file.suffix in PICKLED:
        return size // 4
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            header: Mapping[str, Any] = json.loads(opened.read(length)) if length < MAX_HEADER_BYTES else {}
            if header and size < 8 + length + max(_end(entry) for entry in header.values()):
                raise ModelError(f"{file} is not complete: it is being copied, or is damaged.")
            if header:
                return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, TypeError, LookupError):
            pass
    raise ModelError(
        f"{file} has no weights in it: it is damaged, or a git-lfs pointer (`git lfs pull` downloads the file)."
    )


def _end(entry: Mapping[str, Any]) -> int:
    """Where a tensor of a safetensors file ends, behind the header; 0 for the metadata."""
    return int(entry["data_offsets"][1]) if "data_offsets" in entry else 0


def models_memory(device: Device) -> int:
    """The bytes that all models together may take: of the GPU what is free, of a machine's memory a share."""
    if device.free_bytes is not None:
        return device.free_bytes
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
    total = psutil.virtual_memory().total
    return int(SHARE * min(total, int(text) if text.isdecimal() else total))


def choose_placement(device: Device, weights: int) -> Placement:
    """Chooses for an accelerator by what fits in one worker."""
    if device.free_bytes is None:
        return Placement(False)
    free = device.free_bytes
    about = f"{free / GIB:.1f} GiB are free on the {device.device} device, the weights take {weights / GIB:.1f} GiB"
    if weights + PROCESS_BYTES + GENERATING_BYTES <= free:
        return Placement(False, f"The model fits: {about}.")
    return Placement(True, f"Low-memory mode: {about}.")
