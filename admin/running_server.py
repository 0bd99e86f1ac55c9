"""How a running TorchServe is reached: server.py writes it down, and the commands of this folder read it."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from admin.paths import installation
from handlers.errors import OperatorError

PREFIX = "sd-server-"  # of the name of server.py's run directory
RUN_FILE = "server.json"  # in it


class ReloadError(OperatorError):
    """A reload that failed; the message says which version serves now, and why."""


@dataclass(frozen=True)
class Target:
    """A running TorchServe: its two addresses, and the model store that it registers archives from."""

    management_url: str
    inference_url: str
    store: Path


@dataclass(frozen=True)
class RunningServer:
    """A server.py that runs: its process, the port that clients use, and its TorchServe."""

    pid: int
    port: int
    management_url: str
    inference_url: str
    metrics_url: str
    model_store: str

    def write(self, run_directory: Path) -> None:
        (run_directory / RUN_FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "RunningServer":
        return cls(**json.loads(file.read_text(encoding="utf-8")))

    @property
    def target(self) -> Target:
        return Target(self.management_url, self.inference_url, Path(self.model_store))


def find_target(port: int | None) -> Target:
    """The running server: one that server.py started, otherwise the one that the installation names.

    Raises ReloadError if several run and `port`, the one that clients use, does not choose one.
    """
    found = []
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{RUN_FILE}"):
        try:
            server = RunningServer.read(file)
        except (OSError, ValueError, TypeError):  # left by another version, or by a server that is stopping
            continue
        if psutil.pid_exists(server.pid) and port in (None, server.port):
            found.append(server)
    if len(found) > 1:
        ports = ", ".join(str(server.port) for server in found)
        raise ReloadError(f"Several servers run, on ports {ports}: choose one with --port.")
    if found:
        return found[0].target
    if port is not None:
        raise ReloadError(f"No server.py runs on port {port}.")
    installed = installation()
    return Target(installed.management_url, installed.inference_url, installed.model_store)
