"""Which device and number format a worker uses."""

import torch

from handlers.errors import ModelError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(wanted: str, gpu_id: int | None) -> torch.device:
    """`auto` is CUDA (the card that TorchServe assigned), then MPS, then the CPU."""
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
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps was asked for, but this machine has none: use --device cpu.")
    return device


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU: a number format chosen by a timing would draw another picture tomorrow."""
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if wanted not in DTYPES:
        raise ModelError(f"dtype {wanted!r} is not known: use auto, {', '.join(DTYPES)}.")
    return DTYPES[wanted]
