"""What other busy programs cost: `python -m benchmarks.beside`, a table on standard output.

Servers with other settings of their threads generate the same image of the embedded model in turns: alone, and beside
as many busy loops as there are cores. A fair share of the cores would double an image's time.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from benchmarks.timing import ratio, row, seconds
from tests.support.running import running

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--engine openvino": ("openvino", {}),
    "--engine openvino, one thread": ("openvino", {"OMP_NUM_THREADS": "1"}),
    "--engine torch": ("torch", {}),
    "--engine torch, GOMP_SPINCOUNT=10000": ("torch", {"GOMP_SPINCOUNT": "10000"}),
    "--engine torch, GOMP_SPINCOUNT=100": ("torch", {"GOMP_SPINCOUNT": "100"}),
    "--engine torch, GOMP_SPINCOUNT=0": ("torch", {"GOMP_SPINCOUNT": "0"}),
    "--engine torch, one thread": ("torch", {"OMP_NUM_THREADS": "1"}),
}


@contextlib.contextmanager
def busy(programs: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: all")
    options = parser.parse_args()
    cores, numbers = psutil.cpu_count() or 1, count()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = []
        for i, name in enumerate(options.only):
            engine, variables = SETTINGS[name]
            own = Path(folder, str(i))
            own.mkdir()
            servers.append(stack.enter_context(running(own, "--engine", engine, **variables)))
        works = [
            lambda server=server: server.images("txt2img", prompt=f"a red apple, {next(numbers)}", seed=1)
            for server in servers
        ]
        alone: list[list[float]] = [[] for _ in works]
        beside: list[list[float]] = [[] for _ in works]
        for work in works:
            work()
        for _ in range(options.rounds):
            for programs, times in ((0, alone), (cores, beside)):
                with busy(programs):
                    for found, work in zip(times, works, strict=True):
                        found.append(seconds(work))
        print("| what | measured |\n|---|---|")
        for name, here, there in zip(options.only, alone, beside, strict=True):
            row(
                name,
                f"alone {statistics.median(here):.2f} s (at best {min(here):.2f}), {ratio(here, alone[0]):.2f} × the "
                f"first line; beside {cores} busy loops {statistics.median(there):.2f} s, {ratio(there, here):.2f} ×",
            )


if __name__ == "__main__":
    main()
