"""OpenVINO in place of torch on a CPU: merged UNet calls, both halves of the VAE, the checker (docs/performance.md).

Its numbers differ from torch's in the last digits, or with bfloat16 in more of them, so images are not bit-identical to
the plain pipeline's. Whatever cannot be converted runs in torch.
"""

import contextlib
import hashlib
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from handlers.errors import ModelError
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.forward.signature import CallSignature
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
        self._core = self._openvino.Core()
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
            logger.exception("A %s could not be converted for OpenVINO: it runs in torch.", _kind(weights))
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


def _kind(weights: Weights) -> str:
    return type(weights.module).__name__


class OpenVINOForward:
    """Stands in for `merging.forward` for the calls of UNets.

    Args:
        weights: those of the UNets; a UNet that is not among them keeps its own in memory.
        in_torch: the modules whose calls are not converted.
    """

    def __init__(
        self, converter: Converter, weights: Sequence[Weights] = (), in_torch: Sequence[torch.nn.Module] = ()
    ) -> None:
        self._converter = converter
        self._in_torch = set(in_torch)
        self._weights = {one.module: one for one in weights}
        self._compiled: dict[CallSignature, Any] = {}  # None: it could not be converted

    def __call__(self, call: DenoiserCall) -> Any:
        if call.module in self._in_torch or not call.predicts:
            return forward(call)
        plain = _plain(call)
        weights = self._weights.setdefault(call.module, Weights(call.module))
        # adapters are layers around torch's; a conversion of odd sides does not fit what a ControlNet adds
        if call.adapters is not None or call.has_stack:
            weights.use()
            return forward(call)
        signature = CallSignature.of(plain).without_sizes()  # a conversion takes every size
        if not signature.is_by_value:
            weights.use()
            return forward(call)
        if signature not in self._compiled:
            about = str(replace(signature, module=None))  # type: ignore[arg-type]
            example = _odd(plain)
            self._compiled[signature] = self._converter.compile(
                _Positional(example), weights, about, list(example.tensors())
            )
        compiled = self._compiled[signature]
        if compiled is None:
            weights.use()
            return forward(call)
        sample = _run(compiled, list(plain.tensors()))
        if call.kwargs.get("return_dict", True):
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

            return UNet2DConditionOutput(sample=sample)
        return (sample,)


def _run(compiled: Any, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.from_numpy(compiled([tensor.numpy() for tensor in tensors])[0]).clone()  # the next call overwrites it


def _plain(call: DenoiserCall) -> DenoiserCall:
    """The call in the one form that all callers share, so that a UNet is converted once.

    Arguments that are None are absent, the result is a tuple, and timesteps are float32, as the UNet makes them itself.
    """
    given = {name: value for name, value in call.kwargs.items() if value is not None and name != "return_dict"}
    rows = call.with_timesteps()
    return replace(rows, timestep=rows.timestep.float(), kwargs=given | {"return_dict": False})


class _Positional(torch.nn.Module):
    """The UNet of a call with only the call's tensors as arguments; all other arguments are fixed."""

    def __init__(self, call: DenoiserCall) -> None:
        super().__init__()
        self.module = call.module
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        call = self._call.with_tensors(tensors)
        output: torch.Tensor = call.run()[0]
        return output


def _odd(call: DenoiserCall) -> DenoiserCall:
    """The call with latents of odd sides, as the example for a conversion.

    With those, a UNet enlarges to the sizes that it came from, whatever they are; with others it doubles, which is
    right for even sides alone.
    """
    height, width = call.sample.shape[-2:]
    return replace(call, sample=torch.nn.functional.pad(call.sample, (0, 1 - width % 2, 0, 1 - height % 2)))


def convert_vae(vae: Any, converter: Converter, load: Callable[[], Any] | None = None) -> None:
    """Has both halves of a VAE run in OpenVINO from their first calls on, inside the stock `encode` and `decode`.

    Args:
        load: loads the VAE once more; None if its weights always stay in memory.
    """
    for name in ("encoder", "decoder"):
        half = getattr(vae, name)
        again = None if load is None else lambda name=name: getattr(load(), name)
        half.forward = _Part(half, Weights(half, again), converter)


def convert_checker(checker: Any, converter: Converter, load: Callable[[], Any] | None = None) -> None:
    """Has a stock safety checker's image encoder run in OpenVINO, with an output of which only the pooled one is there.

    Args:
        load: loads the checker once more; None if its weights always stay in memory.
    """
    encoder = checker.vision_model
    again = None if load is None else lambda: load().vision_model
    part = _Part(_Pooled(encoder), Weights(encoder, again), converter)
    encoder.forward = lambda images: (None, part(images))


class _Pooled(torch.nn.Module):
    """An image encoder of CLIP, as (rows, channels, height, width) to (rows, width of the encoder)."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = type(self.encoder).forward(self.encoder, images)[1]  # past the stand-in for its forward
        return pooled


class _Part:
    """The forward of a module that takes one tensor of four sizes to another tensor."""

    def __init__(self, module: torch.nn.Module, weights: Weights, converter: Converter) -> None:
        self._module, self._weights, self._converter = module, weights, converter
        self._in_torch: Callable[..., torch.Tensor] = module.forward
        self._compiled: Any = None
        self._is_converted = False

    def __call__(self, sample: torch.Tensor, *others: Any) -> torch.Tensor:
        fits = sample.dtype == torch.float32 and all(other is None for other in others)
        if fits and not self._is_converted:
            self._module.forward = self._in_torch
            self._compiled = self._converter.compile(self._module, self._weights, "", [sample])
            self._module.forward = self
            self._is_converted = True
        if fits and self._compiled is not None:
            return _run(self._compiled, [sample])
        self._weights.use()
        return self._in_torch(sample, *others)
