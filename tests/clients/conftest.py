"""A server for other programs' libraries, which share it, and the venvs that have those of Python."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import HOME
from tests.support.running import HANG_S, Running, running

LIMIT = 3  # open requests of a client: few, so that a full queue is met soon


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("clients"), SD_MAX_PER_CLIENT=str(LIMIT)) as instance:
        yield instance


def python_with(folder: Path, *packages: str) -> Path:
    """The Python of a new venv that has these packages."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=HANG_S)
    python = folder / "venv" / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    subprocess.run(command, check=True, timeout=HANG_S)
    return python


def run(python: Path, *arguments: str, cwd: Path = HOME) -> str:
    """What a program prints."""
    done = subprocess.run([python, *arguments], cwd=cwd, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout
