"""Device logic, with torch reporting what the test says."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from handlers.errors import ModelError
from handlers.hardware import device
from handlers.hardware.memory import Memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def gpu(patch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], free: int = 8 * 2**30) -> None:
    """Has torch report one GPU, of which another program has left `free` bytes."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "get_device_name", lambda _: name)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    patch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 24 * 2**30))
    patch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**30)
    patch.setattr(torch.cuda, "memory_allocated", lambda _: 2 * 2**30)


def test_a_gpu_is_broken_when_it_cannot_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(torch.cuda, "synchronize", Mock(side_effect=[None, error]))
    found = [Memory(on, native_area=1).is_broken() for on in (CPU, CUDA, CUDA)]
    assert found == [False, False, True]


@pytest.mark.parametrize(
    ("wanted", "cuda", "mps", "expected"),
    [
        ("auto", True, False, "cuda:1"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda:0", True, False, "cuda:0"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, wanted: str, cuda: bool, mps: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(device.choose_device(wanted, 1)) == expected


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [("cuda", "finds no NVIDIA GPU"), ("mps", "has no device mps"), ("tpu9", "There is no device 'tpu9'")],
)
def test_a_device_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch, wanted: str, sentence: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=sentence):
        device.choose_device(wanted, None)


def test_a_gpu_that_is_not_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "NVIDIA GeForce RTX 3060", (8, 6))
    with pytest.raises(ModelError, match="cuda:0"):
        device.choose_device("cuda:4", None)


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA GeForce RTX 3060", (8, 6), torch.float16),
        ("NVIDIA H100", (9, 0), torch.float16),
        ("NVIDIA GeForce GTX 1660 SUPER", (7, 5), torch.float32),  # generates black in half precision
        ("NVIDIA GeForce GTX 980", (5, 2), torch.float32),
    ],
)
def test_dtype_by_capability(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], expected: torch.dtype
) -> None:
    gpu(monkeypatch, name, capability)
    assert device.choose_dtype("auto", CUDA) == expected
    in_wide = torch.bfloat16 if capability >= (8, 0) else torch.float32
    assert device.choose_dtype("auto", CUDA, half=torch.bfloat16) == in_wide
    if capability < (8, 0):
        with pytest.raises(ModelError, match="cannot compute in bfloat16"):
            device.choose_dtype("bfloat16", CUDA)
    else:
        assert device.choose_dtype("bfloat16", CUDA) == torch.bfloat16


def test_dtype_without_a_gpu() -> None:
    assert device.choose_dtype("auto", CPU) == torch.float32
    assert device.choose_dtype("auto", torch.device("mps")) == torch.float16
    assert device.choose_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ModelError, match="There is no dtype"):
        device.choose_dtype("float8", CPU)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_computes_in_what_it_has_unless_images_are_to_be_exact(
    monkeypatch: pytest.MonkeyPatch, machine: str, has: bool
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has and machine == "x86_64")
    # true of an x86-64 CPU that has AVX-512 alone
    ops = SimpleNamespace(mkldnn=SimpleNamespace(_is_mkldnn_bf16_supported=lambda: has or machine == "x86_64"))
    monkeypatch.setattr(torch, "ops", ops)
    assert device.choose_dtype("auto", CPU, exact=False) == (torch.bfloat16 if has else torch.float32)
    assert device.choose_dtype("auto", CPU) == torch.float32
    assert device.choose_dtype("float32", CPU, exact=False) == torch.float32
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert device.choose_dtype("auto", CPU, exact=False) == torch.float32


def test_this_cpu_says_what_it_has() -> None:
    assert device.has_bfloat16() in (True, False)


@pytest.mark.parametrize(
    ("where", "version", "cuda", "dtype", "expected"),
    [
        (CUDA, "2.15.0+cu130", "13.0", torch.float16, True),
        (CUDA, "3.0.1", "13.0", torch.bfloat16, True),
        (CUDA, "2.14.1+cu130", "13.0", torch.float16, False),  # its GroupNorm gives the layout up
        (CUDA, "2.15.0+cu130", "13.0", torch.float32, False),
        (CUDA, "2.15.0+rocm7", None, torch.float16, False),
        (CPU, "2.13.0+cpu", None, torch.bfloat16, True),
        (CPU, "2.15.0+cpu", None, torch.float32, False),
        (torch.device("mps"), "2.15.0", None, torch.float16, False),
    ],
)
def test_channels_last_is_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    where: torch.device,
    version: str,
    cuda: str | None,
    dtype: torch.dtype,
    expected: bool,
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert device.choose_channels_last("auto", where, dtype) is expected
    assert device.choose_channels_last("always", where, dtype) and not device.choose_channels_last(
        "never", where, dtype
    )


def test_a_layout_that_is_none_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="There is no channels_last 'perhaps': use auto, always, never"):
        device.choose_channels_last("perhaps", CPU, torch.float32)


def test_what_torch_holds_in_reserve_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, "NVIDIA H100", (9, 0), free=5 * 2**30)
    assert device.available_bytes(CUDA) == 6 * 2**30
    assert device.available_bytes(CPU) is None


def test_the_first_image_is_small_on_a_cpu() -> None:
    assert device.first_size(CPU, 512, 768) == (128, 128)
    assert device.first_size(CPU, 64, 64) == (64, 64)
    assert device.first_size(CUDA, 512, 768) == (512, 768)


def test_the_peak_is_what_came_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(now=100, peak=0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(state, "peak", state.now))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: state.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: state.peak)
    with device.Peak(CUDA) as peak:
        state.peak = 350
    assert peak.bytes == 250
    with device.Peak(CPU) as peak:
        pass
    assert peak.bytes == 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_out_of_memory_in_all_its_words(error: Exception, expected: bool) -> None:
    assert device.is_out_of_memory(error) == expected
