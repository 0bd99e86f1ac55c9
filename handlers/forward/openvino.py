"""OpenVINO in place of torch on a CPU: merged calls of the denoiser, both halves of the VAE, the safety checker.

Its numbers differ from torch's in the last digits, or with bfloat16 in more of them, so images are not bit-identical to
the plain pipeline's (docs/performance.md). Whatever cannot be converted runs in torch.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from handlers.forward.calls import DenoiserCall
from handlers.forward.conversions import Converter
from handlers.forward.merging import forward
from handlers.forward.signature import CallSignature
from handlers.forward.weights import Weights

logger = logging.getLogger(__name__)


class OpenVINOForward:
    """Stands in for `merging.forward` for the calls of denoisers.

    Args:
        weights: those of the denoisers; one that is not among them keeps its own in memory.
    """

    def __init__(self, converter: Converter, weights: Sequence[Weights] = ()) -> None:
        self._converter = converter
        self._weights = {one.module: one for one in weights}
        self._compiled: dict[CallSignature, Any] = {}  # None: it could not be converted
        self._in_torch: set[torch.nn.Module] = set()

    def runs(self, module: torch.nn.Module) -> bool:
        """Whether it has run a call of the module in OpenVINO."""
        return any(compiled and signature.module.id == id(module) for signature, compiled in self._compiled.items())

    def __call__(self, call: DenoiserCall) -> Any:
        if not call.predicts:
            return forward(call)
        plain = _plain(call)
        weights = self._weights.setdefault(call.module, Weights(call.module))
        if call.module not in self._in_torch and (doubt := _doubt(plain)):
            logger.info("The %s runs in torch: %s.", weights.kind, doubt)
            self._in_torch.add(call.module)
        # adapters are layers around torch's; a conversion of odd sides does not fit what a ControlNet adds
        if call.module in self._in_torch or call.adapters is not None or call.has_stack:
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
        return (_run(compiled, list(plain.tensors())),)


def _doubt(call: DenoiserCall) -> str:
    """Why a module cannot be converted once for all of its calls; "" if it can."""
    if getattr(call.module, "hf_quantizer", None) is not None:
        return "its weights are quantised"
    if isinstance(call.sample, list):
        return "its rows are lists"
    if not call.has_stack and any(isinstance(value, (list, tuple)) for value in call.kwargs.values()):
        return "it is told sizes as numbers, so a conversion would hold for one of them"
    return ""


def _run(compiled: Any, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.from_numpy(compiled([tensor.numpy() for tensor in tensors])[0]).clone()  # the next call overwrites it


def _plain(call: DenoiserCall) -> DenoiserCall:
    """The call in the one form that all callers share, so that a denoiser is converted once.

    Timesteps are float32, (rows,), as a UNet makes them itself.
    """
    rows = call.with_timesteps()
    return replace(rows, timestep=rows.timestep.float())


class _Positional(torch.nn.Module):
    """The denoiser of a call with only the call's tensors as arguments; all other arguments are fixed."""

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
    right for even sides alone. Transformers enlarge nothing, and take patches of 2 x 2.
    """
    if not hasattr(call.module, "up_blocks"):
        return call
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

    def __call__(self, sample: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        # Qwen-Image's has a cache for the frames of a film
        fits = sample.dtype == torch.float32 and not named and all(other is None for other in others)
        if fits and not self._is_converted:
            self._module.forward = self._in_torch
            self._compiled = self._converter.compile(self._module, self._weights, "", [sample])
            self._module.forward = self
            self._is_converted = True
        if fits and self._compiled is not None:
            return _run(self._compiled, [sample])
        self._weights.use()
        return self._in_torch(sample, *others, **named)
