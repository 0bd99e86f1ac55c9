"""Prints constraints.txt as it suits the torch that is installed: all of it, if that is the tested one.

Another torch stays as it is, and so do the packages that it requires: it may want other versions of them.
"""

import importlib.metadata
import re
from pathlib import Path


def constraints(lines: list[str], torch: str, required: list[str]) -> list[str]:
    """The lines that hold. `required` are the requirements of that torch."""
    torch = torch.split("+")[0]  # without the name of its build, which an index has or has not
    if f"torch=={torch}" in lines:
        return lines
    free = {"torch"} | {_name(requirement) for requirement in required}
    return [line for line in lines if _name(line) not in free] + [f"torch=={torch}"]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


if __name__ == "__main__":
    lines = Path("constraints.txt").read_text(encoding="utf-8").splitlines()
    print(
        "\n".join(constraints(lines, importlib.metadata.version("torch"), importlib.metadata.requires("torch") or []))
    )
