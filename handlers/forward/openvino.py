"""The merged UNet forward in OpenVINO, by option: faster than torch on a CPU (docs/performance.md)."""

import logging
import sys
from typing import Any

import torch

from handlers.errors import ModelError
from handlers.forward.calls import UNetCall
from handlers.forward.merging import forward
from handlers.forward.signature import CallSignature

logger = logging.getLogger(__name__)


class OpenVINOForward:
    """Stands in for `merging.forward`. A call that cannot be converted runs in torch.

    Its numbers differ from torch's in the last digits, so images are not bit-identical to the plain pipeline's.

    Args:
        threads: the number of threads that a forward uses.

    Raises ModelError if OpenVINO is not installed.
    """

    def __init__(self, threads: int) -> None:
        # Without this package OpenVINO sends no reports of its use; with it, it does so even when it is imported, and
        # starts a process for each.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        try:
            import openvino
        except ImportError:
            raise ModelError("--openvino needs another package: .venv/bin/pip install openvino") from None
        self._openvino = openvino
        self._settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several workers would pin their threads to the same cores
        }
        self._compiled: dict[CallSignature, Any] = {}  # None: it could not be converted

    def __call__(self, call: UNetCall) -> Any:
        signature = CallSignature.of(call).without_sizes()  # a conversion takes every size
        if not signature.is_by_value or not _is_even(call):
            return forward(call)
        if signature not in self._compiled:
            self._compiled[signature] = self._compile(call)
        compiled = self._compiled[signature]
        if compiled is None:
            return forward(call)
        output = compiled([tensor.numpy() for tensor in call.with_timesteps().tensors()])[0]
        sample = torch.from_numpy(output).clone()  # the next call overwrites it
        if call.kwargs.get("return_dict", True):
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

            return UNet2DConditionOutput(sample=sample)
        return (sample,)

    def _compile(self, call: UNetCall) -> Any:
        call = call.with_timesteps()
        try:
            with torch.no_grad():
                model = self._openvino.convert_model(_Positional(call), example_input=tuple(call.tensors()))
            return self._openvino.compile_model(model, "CPU", self._settings)
        except Exception:  # a model that cannot be converted runs all the same
            logger.exception("The UNet could not be converted for OpenVINO: it runs in torch.")
            return None


class _Positional(torch.nn.Module):
    """The UNet of a call with only the call's tensors as arguments; all other arguments are fixed."""

    def __init__(self, call: UNetCall) -> None:
        super().__init__()
        self.unet = call.unet
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        call = self._call.with_tensors(tensors)
        output: torch.Tensor = self.unet(call.sample, call.timestep, **{**call.kwargs, "return_dict": False})[0]
        return output


def _is_even(call: UNetCall) -> bool:
    """Whether the latents can be halved as often as the UNet halves them; if not, a conversion would fix their size."""
    return not any(side % 2**call.unet.num_upsamplers for side in call.sample.shape[-2:])
