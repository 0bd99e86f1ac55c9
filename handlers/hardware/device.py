"""The device: which one, its number format, its memory."""

import gc
import platform

import torch

from handlers.config import LAYOUTS
from handlers.errors import ModelError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# the words of the RuntimeErrors from the CPU's allocator on Linux and on Windows, from MPS and from CUDA's libraries
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")
CHANNELS_LAST_TORCH = (2, 15)  # the first whose GroupNorm keeps the layout on NVIDIA GPUs
FULL_PRECISION = "GTX 16"  # GPUs whose half precision gives black images (huggingface/diffusers issue 2153)


def choose_device(wanted: str, gpu_id: int | None) -> torch.device:
    """`auto` is CUDA (the GPU that TorchServe assigned), then MPS, then the CPU. Raises ModelError."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", gpu_id or 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ModelError(f"There is no device {wanted!r}: use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "This torch finds no NVIDIA GPU for --device cuda: use --device cpu, or install "
            "a CUDA build of torch, as README.md describes."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"There is no {wanted}: this machine has {torch.cuda.device_count()} GPUs, from cuda:0.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("This machine has no device mps: use --device cpu.")
    return device


def choose_dtype(
    wanted: str, device: torch.device, exact: bool = True, half: torch.dtype = torch.float16
) -> torch.dtype:
    """`auto` on a GPU is `half`: as a rule float16, which has three more bits of precision than bfloat16.

    It is float32 on GPUs that compute only in float32, or wrongly in float16. On a CPU it is float32 if images are to
    be `exact`, as the plain pipeline's; otherwise bfloat16 where the processor says that it has it. A dtype chosen by a
    timing would generate another image tomorrow. Raises ModelError.
    """
    if wanted != "auto" and wanted not in DTYPES:
        raise ModelError(f"There is no dtype {wanted!r}: use auto, {', '.join(DTYPES)}.")
    if device.type == "cuda":
        capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
        if wanted == "bfloat16" and capability < (8, 0):
            raise ModelError(f"The GPU {name} cannot compute in bfloat16: use --dtype auto.")
        if wanted == "auto":
            least = (8, 0) if half == torch.bfloat16 else (5, 3)
            return torch.float32 if capability < least or FULL_PRECISION in name else half
    if wanted == "auto" and device.type == "cpu":
        return torch.bfloat16 if not exact and has_bfloat16() else torch.float32
    return half if wanted == "auto" else DTYPES[wanted]


def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, and torch the library that uses them.

    Without them torch computes in it all the same, and takes longer than in float32.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):  # on those the library takes any AVX-512 for enough
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_channels_last(wanted: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the UNet and the VAE get the channels-last layout. `auto` is where it is the faster one in 16 bits.

    On an NVIDIA GPU that is so from CHANNELS_LAST_TORCH on: before, torch's GroupNorm had no kernel for this layout, so
    each one copied to the other layout, and the next convolution back. On a CPU it is so in bfloat16.

    Raises ModelError.
    """
    if wanted not in LAYOUTS:
        raise ModelError(f"There is no channels_last {wanted!r}: use {', '.join(LAYOUTS)}.")
    if wanted != "auto":
        return wanted == "always"
    if device.type == "cuda":
        version = tuple(map(int, torch.__version__.split(".")[:2]))
        has_kernel = torch.version.cuda is not None and version >= CHANNELS_LAST_TORCH
        return has_kernel and dtype != torch.float32
    return device.type == "cpu" and dtype == torch.bfloat16


def available_bytes(device: torch.device) -> int | None:
    """The bytes that can still be allocated on an accelerator; None for a CPU, whose memory the system manages."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def first_size(device: torch.device, width: int, height: int) -> tuple[int, int]:
    """The size of a worker's first image, in pixels, for a model of this native size.

    It is the native size on a GPU, whose libraries choose their kernels by shape. It is small on a CPU, where a first
    image of 512 x 512 would take Stable Diffusion a minute.
    """
    return (min(width, 128), min(height, 128)) if device.type == "cpu" else (width, height)


class Peak:
    """Measures the most bytes that a piece of work allocates at a time: `with Peak(device) as peak`.

    `bytes` is 0 if torch does not count for this device: it does for CUDA only.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> "Peak":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device) - self._before


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(text in str(error) for text in NO_MEMORY)


def is_broken(device: torch.device) -> bool:
    """Whether a GPU does no more work for this process, as CUDA's do after an illegal memory access."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def release_memory(device: torch.device) -> None:
    """Releases torch's reserve, after a request that did not fit.

    A reference cycle keeps that request's memory alive: its error has a traceback, whose frames have the error.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
