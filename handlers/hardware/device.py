"""All that depends on the device: which one, its number format, its memory. Nothing else asks what the device is."""

import gc

import torch

from handlers.errors import ModelError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# what the RuntimeErrors say of the CPU's allocator on Linux and on Windows, of MPS's, and of CUDA's libraries
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")
FULL_PRECISION = "GTX 16"  # cards whose half precision draws black pictures (huggingface/diffusers issue 2153)


def choose_device(wanted: str, gpu_id: int | None) -> torch.device:
    """`auto` is CUDA (the card that TorchServe assigned), then MPS, then the CPU. Raises ModelError."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", gpu_id or 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ModelError(f"device {wanted!r} is not known: use auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "device cuda was asked for, but this torch finds no NVIDIA card: use --device cpu, or install "
            "a CUDA build of torch, as README.md describes."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device {wanted} was asked for, but there are {torch.cuda.device_count()} cards, from cuda:0."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps was asked for, but this machine has none: use --device cpu.")
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU, where a format chosen by a timing would draw another picture tomorrow.

    On a card it is float16, which has three more bits of precision than bfloat16 and is what models are published in;
    float32 on cards that compute in it alone, or wrongly in float16. Raises ModelError.
    """
    if wanted != "auto" and wanted not in DTYPES:
        raise ModelError(f"dtype {wanted!r} is not known: use auto, {', '.join(DTYPES)}.")
    if device.type == "cuda":
        capability, name = torch.cuda.get_device_capability(device), torch.cuda.get_device_name(device)
        if wanted == "bfloat16" and capability < (8, 0):
            raise ModelError(f"The card {name} cannot compute in bfloat16: use --dtype auto.")
        if wanted == "auto":
            return torch.float32 if capability < (5, 3) or FULL_PRECISION in name else torch.float16
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return DTYPES[wanted]


def available_bytes(device: torch.device) -> int | None:
    """What can still be allocated on an accelerator; None for a CPU, whose memory the operating system manages."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def first_size(device: torch.device, width: int, height: int) -> tuple[int, int]:
    """The size of a worker's first picture, in pixels, for a model of this native size.

    Native on a card, whose libraries choose their kernels by shape; small on a CPU, where a first picture of 512 x 512
    would take Stable Diffusion a minute.
    """
    return (min(width, 128), min(height, 128)) if device.type == "cpu" else (width, height)


class Peak:
    """Measures the bytes that a piece of work holds at its peak beyond what was there: `with Peak(device) as peak`.

    `bytes` is 0 where the device does not keep count: torch does for CUDA alone.
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


def release_memory(device: torch.device) -> None:
    """Gives back what torch holds in reserve, after a request that did not fit.

    What it had is kept alive by a cycle: its error has a traceback, whose frames have the error.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
