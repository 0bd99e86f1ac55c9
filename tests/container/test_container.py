"""The image: built, hardened, healthy, stopped, short of memory, and composed of two. `make test-container`."""

import base64
import io
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from launch.machine import free_ports
from tests.container.engine import IMAGE, Engine, started
from tests.support.paths import HOME
from tests.support.running import HANG_S, wait_for
from tests.support.samples import b64
from tests.support.samples import sample_image as sample

pytestmark = pytest.mark.container


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with started() as engine:
        engine.build(HOME, IMAGE)
        yield engine


@pytest.fixture(scope="session")
def container(engine: Engine) -> Iterator[tuple[str, str]]:
    """The name and the address of a hardened container that serves."""
    port = free_ports(1)[0]
    with engine.running(port=port) as name:
        yield name, f"http://127.0.0.1:{port}"


def sample_image(url: str, task: str, **fields: Any) -> Image.Image:
    answer = httpx.post(f"{url}/{task}", data={"prompt": "a red apple", "seed": 7} | fields, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]["base64"])))


def test_the_dockerfile_has_no_findings() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, HOME / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_of_code_leaves_the_packages_alone(engine: Engine, tmp_path: Path) -> None:
    copied = shutil.ignore_patterns(".*", "training", "tests", "model_store", "*.egg-info")
    shutil.copytree(HOME, tmp_path / "context", ignore=copied)
    shutil.copy(HOME / ".dockerignore", tmp_path / "context")
    # the engine's cache goes by content: times of files do not count
    with (tmp_path / "context" / "handlers" / "errors.py").open("a") as file:
        file.write("# a change\n")
    output = engine.build(tmp_path / "context", "sd-api-server:changed")
    for step in ("--requirement torch.txt", "--requirement requirements.txt", "apt-get"):
        # the classic builder says so in the next line, BuildKit in the step's own
        assert re.search(rf"{step}.*\n ---> Using cache|CACHED.*{step}", output), output
    engine("rmi", "sd-api-server:changed")


@pytest.mark.parametrize("task", ["txt2img", "img2img", "masking"])
def test_a_hardened_container_generates(container: tuple[str, str], task: str) -> None:
    init = b64(sample(96, 64))
    images = {"init_image": init, "mask_image": init} if task != "txt2img" else {}
    image = sample_image(container[1], task, **images)
    assert image.size == (96, 64) if images else image.size[0] >= 64
    assert np.ptp(np.asarray(image)) > 50


def test_it_runs_as_nobody_in_particular_and_writes_nothing(engine: Engine, container: tuple[str, str]) -> None:
    name = container[0]
    assert engine("exec", name, "id", "-u").strip() == "10001"
    assert "Read-only file system" in engine("exec", name, "touch", "/app/x", check=False)
    assert engine("exec", name, "cat", "/proc/1/comm").strip() == "tini"
    assert engine("diff", name).strip() == ""


def test_only_the_proxy_listens_on_more_than_loopback(engine: Engine, container: tuple[str, str]) -> None:
    code = (
        "import psutil; print({(c.laddr.ip.removeprefix('::ffff:'), c.laddr.port) "
        "for c in psutil.net_connections('tcp') if c.status == 'LISTEN'})"
    )
    listening = eval(engine("exec", container[0], "python", "-c", code))
    assert {port for ip, port in listening if ip != "127.0.0.1"} == {1337}


def test_reload_inside_the_container(engine: Engine, container: tuple[str, str]) -> None:
    assert "stable-diffusion 2.0 serves" in engine("exec", container[0], "python", "-m", "admin.reload")
    assert "stable-diffusion 2.0 (default): READY" in engine(
        "exec", container[0], "python", "-m", "admin.reload", "--list"
    )
    sample_image(container[1], "txt2img")


def test_sigterm_ends_it(engine: Engine) -> None:
    with engine.running(port=free_ports(1)[0]) as name:
        engine("stop", "--time", "25", name)
        # 137 would be the kill that follows after the time has passed
        assert engine.inspect(name)["State"]["ExitCode"] == 0
        assert engine("logs", name).rstrip().endswith("Stopped.")


def test_a_worker_that_the_memory_limit_kills_comes_back(engine: Engine) -> None:
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with engine.running("--memory", "8g", "--memory-swap", "8g", port=port) as name:
        files = "memory.current memory/memory.usage_in_bytes"  # of cgroup version 2 and 1
        used = int(engine("exec", name, "sh", "-c", f"cd /sys/fs/cgroup; cat {files} 2>&-", check=False))
        limit = str(used + 150 * 2**20)
        engine("update", "--memory", limit, "--memory-swap", limit, name)
        large = b64(sample(2500, 2500), "JPEG")
        answers: list[httpx.Response] = []

        def ask() -> None:
            fields = {"prompt": "a house", "init_image": large}
            answers.append(httpx.post(f"{url}/img2img", data=fields, timeout=HANG_S))

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        files = "memory.events memory/memory.oom_control"
        events = engine("exec", name, "sh", "-c", f"cd /sys/fs/cgroup; cat {files} 2>&-", check=False)
        assert any(int(count) for count in re.findall(r"^oom_kill (\d+)", events, re.M)), events
        assert len(answers) == 6
        for answer in (answer for answer in answers if answer.status_code != 200):
            # 500 for one that was there at two deaths
            assert answer.status_code in (500, 503, 507), answer.text
            assert answer.json()["status"] == "failure" and len(answer.json()["message"]) > 20
        wait_for(lambda: httpx.get(f"{url}/ping", timeout=10).status_code == 200)
        sample_image(url, "img2img", init_image=b64(sample()))
        assert engine.inspect(name)["State"]["Running"]


def test_two_services_the_second_waits_for_the_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_ports(1)[0]
    monkeypatch.setenv("SD_PORT", str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        engine.compose("up", "--detach", "--no-build")
        torchserve, proxy = (engine.compose("ps", "-q", name).strip() for name in ("torchserve", "proxy"))
        engine.wait_healthy(proxy)
        checks = engine.inspect(torchserve)["State"]["Health"]["Log"]
        first_good = min(check["Start"] for check in checks if check["ExitCode"] == 0)
        assert _time(engine.inspect(proxy)["State"]["StartedAt"]) > _time(first_good)
        sample_image(url, "txt2img")
        assert engine.inspect(proxy)["HostConfig"]["NetworkMode"] == f"container:{torchserve}"
        engine.compose("exec", "-T", "torchserve", "python", "-m", "admin.reload")
        init = b64(sample())
        sample_image(url, "masking", init_image=init, mask_image=init)
        engine.compose("stop")
        for container in (proxy, torchserve):  # 137 would be the kill that follows after the time has passed
            assert engine.inspect(container)["State"]["ExitCode"] != 137
    finally:
        engine.compose("down", "--volumes")


def _time(text: str) -> datetime:
    """Docker writes nanoseconds, and its health log an offset instead of Z."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00"))
