"""HAProxy with the project's configuration, and where it comes from."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from launch.machine import free_ports
from tests.support.paths import HOME
from tests.support.running import HANG_S, wait_for

CONFIG = HOME / "deploy" / "haproxy" / "haproxy.cfg"
UNPACKED = HOME / "build" / "haproxy"


def command() -> tuple[str, dict[str, str]]:
    """The HAProxy that is installed, else Debian's, unpacked into the build folder, which needs no root."""
    if installed := shutil.which("haproxy", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin"):
        return installed, {}
    assert shutil.which("apt-get"), "install HAProxy 2.6 or later"
    binary = UNPACKED / "root" / "usr" / "sbin" / "haproxy"
    if not binary.is_file():
        _unpack()
    libraries = (UNPACKED / "root" / "usr" / "lib").glob("*-linux-gnu")
    return str(binary), {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


def _unpack() -> None:
    for folder in ("lists/partial", "cache/archives/partial"):
        (UNPACKED / folder).mkdir(parents=True, exist_ok=True)
    # package lists and packages of its own; nothing of the system is written
    options = [f"Dir::State::Lists={UNPACKED}/lists", f"Dir::Cache={UNPACKED}/cache", "Debug::NoLocking=1"]
    apt = ["apt-get", "--quiet", *(f"-o{option}" for option in [*options, "APT::Sandbox::User=root"])]
    _run([*apt, "update"])
    _run([*apt, "install", "--download-only", "--yes", "--no-install-recommends", "haproxy"])
    for package in (UNPACKED / "cache" / "archives").glob("*.deb"):
        _run(["dpkg", "--extract", str(package), str(UNPACKED / "root")])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"


@contextlib.contextmanager
def balancing(ports: Sequence[int], log: Path, status: int = 200) -> Iterator[str]:
    """HAProxy in front of the nodes at these ports; yields its address once it answers with this status."""
    binary, variables = command()
    port = free_ports(1)[0]
    nodes = {f"SD_NODE{i}": f"127.0.0.1:{node}" for i, node in enumerate(ports, start=1)}
    environment = os.environ | variables | nodes | {"SD_BIND": f"127.0.0.1:{port}"}
    checked = subprocess.run([binary, "-c", "-f", CONFIG], env=environment, capture_output=True, text=True)
    assert checked.returncode == 0 and "[WARNING]" not in checked.stderr, checked.stderr
    with log.open("wb") as output:
        process = subprocess.Popen(
            [binary, "-db", "-f", CONFIG], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or _status(url) == status, 60)
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(HANG_S)


def _status(url: str) -> int:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=10).status_code
    return 0
