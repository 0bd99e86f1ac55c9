"""Two real servers for all end-to-end tests: one as the README starts it, one with keys and TLS on all addresses."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from signal import SIGINT

import psutil
import pytest

from tests.support.paths import HOME
from tests.support.running import HANG_S, Running, proxied, running, wait_for

BIN = HOME / ".venv" / "bin" / "python"


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Three archives in torch, started by make; stopped like Ctrl-C does, and then nothing may be left."""
    folder = tmp_path_factory.mktemp("three")
    by_make = ["sh", "-c", 'exec make serve ARGS="$*"', "make"] if BIN.exists() else None
    with running(
        folder, "--archives", "three", "--engine", "torch", **({"command": by_make} if by_make else {})
    ) as instance:
        yield instance
        processes = [instance.process, *instance.process.children(recursive=True)]
        assert len(processes) >= 7  # server.py, the launcher, Java, three workers, the proxy
        _interrupt(processes)
    wait_for(lambda: not any(process.is_running() for process in processes))
    assert "Stopped." in instance.output.read_text()
    assert not list(folder.glob("sd-server-*"))


def _interrupt(processes: list[psutil.Process]) -> None:
    (launcher,) = [process for process in processes if "server.py" in process.cmdline()]
    launcher.send_signal(SIGINT)
    psutil.wait_procs(processes[:1], HANG_S)


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    """The combined archive with a tiny model, on all addresses, with two keys, over TLS, with a log in JSON."""
    folder = tmp_path_factory.mktemp("guarded")
    certificate = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
                   "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                   "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]  # fmt: skip
    subprocess.run(certificate, check=True, capture_output=True)
    (folder / "keys").write_text("first-key\nsecond-key\n")
    options = ["--host", "0.0.0.0", "--model", tiny_model,
               "--api-key-file", folder / "keys",
               "--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem", "--log-level", "info"]  # fmt: skip
    with running(folder, *map(str, options), SD_LOG_FORMAT="json") as instance:
        yield instance


@pytest.fixture(scope="session")
def combined(guarded: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The same combined archive, through a proxy without keys."""
    with proxied(guarded, tmp_path_factory.mktemp("combined")) as instance:
        yield instance


@pytest.fixture
def always_200(combined: Running, tmp_path: Path) -> Iterator[Running]:
    with proxied(combined, tmp_path, SD_FAILURES_AS_200="1") as instance:
        yield instance
