"""`python3 server.py doctor`: what it finds on this machine, and what it says to do where something is missing."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launch import doctor
from launch.doctor import CheckFailed
from tests.support.paths import EMBEDDED, HOME
from tests.support.running import HANG_S


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "server.py", "doctor", *arguments],
        cwd=HOME, env=os.environ | environment, capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip


@pytest.mark.thorough
def test_a_healthy_machine_generates_a_first_image() -> None:
    from launch.machine import free_ports

    done = run("--port", str(free_ports(1)[0]))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    names = ["Python", "Packages", "Java", "Disk", "Device", "Port", "Access", "Token", "Model", "Image"]
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in names]
    assert "all three pipelines generate" in lines[-2] and lines[-1] == "The server can serve."


def test_each_trouble_is_a_sentence_and_the_others_are_looked_at_all_the_same(tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    shutil.copytree(EMBEDDED, damaged)
    (damaged / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", str(taken.getsockname()[1]), "--model", str(damaged), SD_TLS_CERT="cert.pem")
    assert done.returncode == 1 and "Traceback" not in done.stderr + done.stdout
    wrong = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("NO")}
    assert wrong.keys() == {"Port", "Access", "Image"}
    assert "choose another port with --port" in wrong["Port"] and "SD_TLS_KEY" in wrong["Access"]
    assert "cannot be loaded" in wrong["Image"] and done.stdout.endswith("3 failed: see the lines with NO.\n")


def test_a_model_that_is_not_there_is_told() -> None:
    done = run("--model", "/no/such/model", "--port", "0")
    assert done.returncode == 1 and "There is no model at /no/such/model" in done.stdout


def test_what_is_not_installed_is_told_without_importing_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.metadata.version

    def version(name: str) -> str:
        if name == "psutil":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "pillow" else found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.main([]) == 1
    says = capsys.readouterr().out
    assert "psutil is missing" in says and "pillow is 0.1 instead of >=13" in says and "make serve" in says
    assert "Java" not in says


@pytest.mark.parametrize(
    ("version", "suits"), [((3, 10, 9), False), ((3, 11, 0), True), ((3, 14, 2), True), ((3, 15, 0), False)]
)
def test_another_python_is_told(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], suits: bool) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    if suits:
        assert doctor.check_python() == ".".join(map(str, version))
    else:
        with pytest.raises(CheckFailed, match="make serve PYTHON="):
            doctor.check_python()


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.13.1", "==2.13.0", False),
        ("2.13", "==2.13.0", True),
        ("5.23.0", ">=5.23,<6", True),
        ("5.9", ">=5.23,<6", False),
        ("6.0.0", ">=5.23,<6", False),
        ("0.42.1.post1", ">=0.42.1,<0.43", True),
        ("21.0.8.2", "<22,>=21", True),
        ("2024c", "", True),
    ],
)
def test_a_version_in_its_range(version: str, wanted: str, fits: bool) -> None:
    assert doctor.satisfies(version, wanted) is fits


def test_the_installed_command_looks_at_what_pip_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert int(doctor.check_packages().split()[1]) > 20
    monkeypatch.setattr("admin.paths.HOME", tmp_path)  # where there is no pyproject.toml
    lines = ["psutil<8,>=7.2", "yaml-nowhere>=1", 'ruff; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    with pytest.raises(CheckFailed, match=r"^yaml-nowhere is missing: install them"):
        doctor.check_packages()
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines[:1])
    assert doctor.check_packages() == "all 1 installed"
