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
from launch.trouble import CheckFailed
from tests.conftest import EMBEDDED, HOME


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "server.py", "doctor", *arguments],
        cwd=HOME, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_a_healthy_machine_draws_a_first_picture() -> None:
    from launch.machine import free_ports

    done = run("--port", str(free_ports(1)[0]))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    names = ["Python", "Packages", "Java", "Disk", "Device", "Port", "Access", "Token", "Model", "Picture"]
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", name] for name in names]
    assert "all three pipelines draw" in lines[-2] and lines[-1] == "The server can serve."


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
    assert wrong.keys() == {"Port", "Access", "Picture"}
    assert "choose another with --port" in wrong["Port"] and "SD_TLS_KEY" in wrong["Access"]
    assert "cannot be loaded" in wrong["Picture"] and done.stdout.endswith("3 to mend: see the lines with NO.\n")


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
    assert "psutil is missing" in says and "pillow is 0.1 in place of" in says and "make serve" in says
    assert "Java" not in says


def test_another_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 1))
    with pytest.raises(CheckFailed, match="make serve PYTHON="):
        doctor.check_python()
