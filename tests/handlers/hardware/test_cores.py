"""The cores are shared with real processes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from handlers.hardware.cores import SLOTS, Cores
from tests.support.paths import HOME

WORKER = """
import sys
from pathlib import Path
from handlers.hardware.cores import Cores
cores = Cores(Path(sys.argv[1]))
for line in sys.stdin:
    cores.share() if line == "share\\n" else cores.leave()
    print(flush=True)
"""


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(tmp_path)]
        started.append(subprocess.Popen(command, cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        tell(started[-1], "share")
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str], what: str) -> None:
    assert process.stdin and process.stdout
    print(what, file=process.stdin, flush=True)
    process.stdout.readline()


def test_workers_that_generate_divide_the_cores(worker: Callable[[], subprocess.Popen[str]], tmp_path: Path) -> None:
    cores = Cores(tmp_path)
    cores.share()
    assert torch.get_num_threads() == 4
    other, third = worker(), worker()
    cores.share()
    assert torch.get_num_threads() == 1
    tell(other, "leave")
    cores.share()
    assert torch.get_num_threads() == 2
    third.kill()  # the end of a process is the end of its lock
    third.wait()
    cores.share()
    assert torch.get_num_threads() == 4


def test_a_worker_that_does_not_generate_takes_no_cores(
    worker: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    ours = Cores(tmp_path)
    ours.share()
    ours.leave()
    watched = Cores(tmp_path)
    watched.share()
    assert torch.get_num_threads() == 4


def test_more_workers_than_are_told_apart_have_a_share_all_the_same(tmp_path: Path) -> None:
    several = [Cores(tmp_path) for _ in range(SLOTS + 1)]
    for cores in several:
        cores.share()
    assert torch.get_num_threads() == 1
