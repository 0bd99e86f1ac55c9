"""The device, as programs without torch find it."""

import json

import pytest

from admin import probe
from admin.probe import Device, ask_torch, find_device
from handlers.errors import ModelError


def test_the_device_is_found_by_a_process_with_torch() -> None:
    assert ask_torch("cpu", "bfloat16") == Device("cpu", "bfloat16", None)
    with pytest.raises(ModelError, match="tpu9"):
        ask_torch("tpu9", "auto")


def test_the_cpu_is_found_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(device: str, dtype: str) -> Device:
        asked.append(device)
        return Device("mps", "float16", 1)

    monkeypatch.setattr("admin.probe.ask_torch", ask)
    monkeypatch.setattr("admin.probe.sys.platform", "linux")
    monkeypatch.setattr("admin.probe.torch_build", lambda: {"cuda": None, "hip": None})
    assert find_device("cpu", "auto") == find_device("auto", "auto") == Device("cpu", "float32", None)
    assert not asked
    find_device("cuda", "auto")  # there is none: the process with torch says so
    find_device("auto", "float8")
    monkeypatch.setattr("admin.probe.sys.platform", "darwin")
    find_device("auto", "auto")
    assert asked == ["cuda", "auto", "auto"]


def test_the_command_reports_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr("handlers.hardware.device.available_bytes", lambda _: 9 * 2**30)
    assert probe.main([]) == 0
    assert json.loads(capsys.readouterr().out) == {"device": "cuda", "dtype": "float16", "free_bytes": 9 * 2**30}
    assert probe.main(["--dtype", "float8"]) == 1
    assert "is not known" in capsys.readouterr().err
