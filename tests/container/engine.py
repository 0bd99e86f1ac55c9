"""The Docker engine that the tests of the image use, and containers that end with their test."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import HOME
from tests.support.running import HANG_S

log = logging.getLogger(__name__)

# brings up a real engine where there is none, and a stand-in for the base image where no registry is reached
STAND_IN = HOME.parent / "shared" / "tools" / "container-engine"
IMAGE = "sd-api-server:test"
# as docs/operations.md recommends it
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
OPEN = ("-e", "SD_NO_AUTH=1")  # the port is published on loopback


class Engine:
    """`docker` and `docker compose` as commands."""

    def __init__(self, compose: list[str], build_arguments: list[str]) -> None:
        self._compose = compose
        self.build_arguments = build_arguments

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """What `docker ARGUMENTS` prints."""
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=900)
        assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def compose(self, *arguments: str) -> str:
        environment = os.environ | {"SD_IMAGE": IMAGE}
        command = [*self._compose, "--project-name", "sd-test", *arguments]
        done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def build(self, context: Path, tag: str) -> str:
        return self("build", *self.build_arguments, "--tag", tag, str(context))

    def inspect(self, container: str) -> Any:
        return json.loads(self("inspect", container))[0]

    def health(self, container: str) -> str:
        """`starting`, `healthy`, `unhealthy`; `exited` once it has ended."""
        state = self.inspect(container)["State"]
        return str(state["Health"]["Status"]) if state["Running"] else "exited"

    def wait_healthy(self, container: str, seconds: float = 240) -> None:
        end = time.monotonic() + seconds
        while (health := self.health(container)) != "healthy":
            assert health == "starting" and time.monotonic() < end, self("logs", container)
            time.sleep(0.5)

    @contextlib.contextmanager
    def running(self, *arguments: str, port: int) -> Iterator[str]:
        """A hardened container of the image, published on loopback; yields its name once it is healthy."""
        name = f"sd-test-{port}"
        self("run", "--detach", "--name", name, "-p", f"127.0.0.1:{port}:1337", *OPEN, *HARDENED, *arguments, IMAGE)
        try:
            self.wait_healthy(name)
            yield name
        finally:
            self("rm", "--force", "--volumes", name)


@contextlib.contextmanager
def started() -> Iterator[Engine]:
    """The engine that is there, else the stand-in's; skips with the reason where there is neither."""
    there = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    if there:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0
        stands_in = bool(os.environ.get("CONTAINER_ENGINE_STANDS_IN"))
        yield Engine(["docker", "compose"] if plugin else ["docker-compose"], _build_arguments(stands_in))
    elif STAND_IN.is_file() and os.geteuid() == 0:
        lines = subprocess.run([STAND_IN, "up"], check=True, capture_output=True, text=True, timeout=900).stdout
        if not shutil.which("docker-compose"):
            subprocess.run(
                ["apt-get", "install", "--yes", "--no-install-recommends", "docker-compose"],
                check=True, capture_output=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            )  # fmt: skip
        host = lines.partition("DOCKER_HOST=")[2].strip()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", host)
            yield Engine(["docker-compose"], _build_arguments(True))
        _stop_stand_in()
    else:
        pytest.skip("no Docker engine answers, and there is no stand-in for one beside the checkout")


def _stop_stand_in() -> None:
    """Once more where its daemon was still letting go of its files; what is left then is logged, no failed test."""
    for _ in range(3):
        down = subprocess.run([STAND_IN, "down"], capture_output=True, text=True, timeout=HANG_S)
        if down.returncode == 0:
            return
        time.sleep(10)
    log.warning("The container engine's stand-in was not cleared away: %s", down.stderr)


def _build_arguments(stands_in: bool) -> list[str]:
    # the stand-in reaches the default package index alone
    return ["--build-arg", "TORCH_INDEX="] if stands_in else []
