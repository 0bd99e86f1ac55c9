"""Starts of server.py that fail, and one that is answered in another way."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from launch.machine import free_ports
from tests.support.parts import has_ended
from tests.support.paths import EMBEDDED, HOME
from tests.support.running import HANG_S, running, wait_for

pytestmark = pytest.mark.faults
GONE_S = 2  # within which all has ended that a killed server.py leaves


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "server.py", *arguments],
        cwd=HOME, env=os.environ | environment, capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    done = run("--model", str(folder), "--port", str(free_ports(1)[0]), TMPDIR=str(tmp_path))
    assert done.returncode == 1
    assert f"The model {folder} cannot be loaded" in done.stderr and "Traceback" not in done.stderr


def test_a_worker_that_dies_while_it_starts_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    # without a device of its own choosing, a server whose torch has CUDA would fail before: it asks torch for one
    done = run("--device", "cpu", "--port", str(free_ports(1)[0]), TMPDIR=str(tmp_path), TORCH_LOGS="nonsense")
    assert done.returncode == 1
    assert "A worker dies while it starts: " in done.stderr and "ValueError" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_download_ends_with_the_server_that_is_killed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:  # which answers nobody
        hub.settimeout(HANG_S)
        environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
        command = [sys.executable, "server.py", "--model", "some/model", "--device", "cpu"]
        server = psutil.Popen([*command, "--port", str(free_ports(1)[0])], cwd=HOME, env=os.environ | environment)
        try:
            with hub.accept()[0]:
                (download,) = server.children(recursive=True)
                assert "admin.download" in download.cmdline()
                server.kill()
                server.wait()
                wait_for(lambda: has_ended(download), GONE_S)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                server.kill()


def test_it_starts_though_failures_are_answered_with_200(tmp_path: Path) -> None:
    with running(tmp_path, SD_FAILURES_AS_200="1") as instance:
        said = instance.output.read_text().splitlines()
        waits = (
            "Model: ",
            "Checking the device",
            "Starting TorchServe",
            "building the archives",
            "starting",
            "Ready: http://127.0.0.1",
        )
        order = [next(i for i, line in enumerate(said) if line.startswith(begin)) for begin in waits]
        assert order == sorted(order)  # what it waits for is said before it waits
        answer = instance.post("txt2img", {"prompt": "x", "width": 77})
        assert answer.status_code == 200 and answer.json()["status"] == "failure"
