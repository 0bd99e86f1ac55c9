"""Torch modules as OpenVINO's models, kept in a folder, so that the next start need not convert them again."""

import contextlib
import functools
import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from handlers.errors import ModelError
from handlers.forward.weights import Weights

logger = logging.getLogger(__name__)

KEPT = 16  # conversions; a model has four
ABANDONED_S = 3600  # after which nobody still saves a conversion


def pays() -> bool:
    """Whether OpenVINO is there, and works, for a processor that it was made for."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        _load()
    except ModelError:
        return False
    return True


def _load() -> Any:
    # Without this package OpenVINO sends no reports of its use; with it, it does so even when it is imported, and
    # starts a process for each.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise ModelError(f"--engine openvino needs the package openvino, which cannot be imported: {error}") from None
    return openvino


@functools.cache
def _core() -> Any:
    # One in a process: each sets an alternate signal stack for the thread that makes it, and puts the former one back
    # when it ends. Several that end in another order leave one that is freed, and the next signal ends the process.
    return _load().Core()


class Converter:
    """Converts torch modules, and keeps the conversions in a folder, so that the next start need not.

    Args:
        threads: the number of threads that a forward uses.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where the processor computes in it.
        folder: where conversions are kept.

    Attributes:
        dtype: what it computes in.

    Raises ModelError if OpenVINO is not installed, or cannot compute in the dtype.
    """

    def __init__(self, threads: int, dtype: str, folder: Path) -> None:
        self._openvino = _load()
        self._core = _core()
        self._folder = folder
        has_bfloat16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if dtype not in ("auto", "float32", *(["bfloat16"] if has_bfloat16 else [])):
            raise ModelError(f"OpenVINO does not compute in {dtype} here: use --dtype auto, or --engine torch.")
        self.dtype = ("bfloat16" if has_bfloat16 else "float32") if dtype == "auto" else dtype
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several workers would pin their threads to the same cores
        }

    def compile(self, module: torch.nn.Module, weights: Weights, about: str, tensors: Sequence[Any]) -> Any:
        """`module` for arguments like `tensors`, of any sizes, as a function; None if it cannot be converted.

        Args:
            weights: the module's, which leave torch's memory before OpenVINO makes its own copy.
            about: what else tells two conversions apart.
        """
        root = logging.getLogger()
        level, filters, log_handlers = root.level, root.filters[:], root.handlers[:]
        try:
            name, is_half = weights.identity
            key = hashlib.sha256(f"{self._openvino.__version__} {name} {about}".encode()).hexdigest()[:32]
            kept, model = self._folder / key, None
            if not (kept / "model.xml").is_file():
                weights.restore()
                with torch.no_grad():
                    model = self._openvino.convert_model(module, example_input=tuple(tensors))
                if self._keep(model, kept, is_half):
                    model = None  # which has the weights
            if model is None:
                with contextlib.suppress(OSError):  # a folder that others may only read
                    os.utime(kept)  # the least recently used are removed
                weights.release()
                model = self._core.read_model(kept / "model.xml")
            compiled = self._core.compile_model(model, "CPU", self._settings)
            weights.release()
            return compiled
        except Exception:  # a model that cannot be converted runs all the same
            # a conversion that fails leaves the log to errors alone
            root.setLevel(level)
            root.filters, root.handlers = filters, log_handlers
            logger.exception("A %s could not be converted for OpenVINO: it runs in torch.", weights.kind)
            return None

    def _keep(self, model: Any, folder: Path, is_half: bool) -> bool:
        """Saves a conversion, whole or not at all. Returns whether there was room for it.

        Args:
            is_half: whether 16 bits are enough for its weights, as those of most published models.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob("new-*"):  # by a worker that was killed
                if left.stat().st_mtime < time.time() - ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=self._folder, prefix="new-") as scratch:
                self._openvino.save_model(model, Path(scratch, "new", "model.xml"), compress_to_fp16=is_half)
                with contextlib.suppress(OSError):  # another worker was first
                    Path(scratch, "new").rename(folder)
            for old in sorted(self._folder.glob("*/model.xml"), key=lambda file: file.parent.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old.parent, ignore_errors=True)
        except (OSError, RuntimeError) as error:
            logger.warning("The conversion for OpenVINO is not kept, so each start makes it anew: %s", error)
            return False
        return (folder / "model.xml").is_file()
