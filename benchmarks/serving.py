"""What serving costs, what batching gains, and how others fare: `make bench`, a table on standard output.

Every figure is a ratio or a difference between things measured side by side, in turns, in one run; this machine may
be shared and noisy. The model is the embedded one at any size, on this machine's CPU. This server, its peers
(`benchmarks/peers`) and the in-process pipeline have the same number of torch threads and GOMP_SPINCOUNT=1000, the
servers the same settings of malloc. All get the same requests, and the peers are suspended while it is not their turn.
Prompts are new in each request, but for a few of the mixed list, so nobody profits from having encoded one before.
A peer that is missing or fails is said so.

It takes about a quarter of an hour on two cores, with `--full` forty.
"""

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from admin.paths import HOME
from benchmarks.contenders import IN_OPENVINO, OURS, Contender, peers
from benchmarks.in_process import InProcess
from benchmarks.load import arriving, capacity, closed_loops
from benchmarks.models import free_size_copy, null_unet
from benchmarks.overhead import Overhead
from benchmarks.plot import plot
from benchmarks.queueing import short_behind_long
from benchmarks.resources import Memory, cold_start
from benchmarks.timing import row
from benchmarks.workload import mixed
from tests.support.paths import SIDE
from tests.support.running import Running, running

STEPS = 20


def bench(folder: Path, options: argparse.Namespace) -> None:
    full, rounds = options.full, options.rounds
    model = free_size_copy(folder / "model")
    print(f"\n{psutil.cpu_count()} cores, torch {torch.__version__}\n\n| what | measured |\n|---|---|", flush=True)
    cold_start(model, folder, starts=3 if full else 1)
    without_unet(folder / "null", rounds)
    with serving(OURS, model, folder / "ours") as (server, ours):
        threads = server.models()[0]["threads"]
        in_process = InProcess(model, threads)
        with serving(IN_OPENVINO, model, folder / "openvino") as (_, own), peers(model, threads, folder) as others:
            contenders = [ours, own, *others]
            overhead = Overhead(server.url, in_process, rounds)
            in_process.coroutine_overhead(SIDE, STEPS, rounds)
            for steps in (STEPS, 1):
                overhead.measure(SIDE, steps)
            overhead.floor(server.torchserve["inference_url"])
            for megabytes in (2, 8):
                overhead.init_image(megabytes)
            memory = Memory(server, others)
            memory.take("before the load")
            measured = {
                clients: closed_loops(contenders, in_process, clients, SIDE, STEPS, max(1, rounds // 3))
                for clients in ((1, 2, 4, 8, 16) if full else (1, 4, 8))
            }
            memory.take("after the closed loops")
            requests = mixed(48 if full else 12)
            rate = capacity(ours, requests)
            for share in (0.5, 0.8, 1.0, 1.2) if full else (0.8,):
                arriving(contenders, requests, share, rate)
                memory.take(f"at {share:.1f}")
            memory.show()
            short_behind_long(contenders, SIDE, max(1, rounds // 4))
    openvino(model, threads, rounds)
    try:
        title = f"{SIDE} px, {STEPS} steps, {psutil.cpu_count()} cores, {platform.machine()}"
        plot(measured, title, options.plot)
    except ImportError as error:
        print(f"\nNo plot: {error}")


@contextlib.contextmanager
def serving(name: str, model: Path, folder: Path) -> Iterator[tuple[Running, Contender]]:
    """This server, by `name`."""
    folder.mkdir()
    engine = "openvino" if name == IN_OPENVINO else "torch"
    with running(folder, "--model", str(model), "--engine", engine) as server:
        yield server, Contender(name, server.url + "/{task}", server.process, sleeps=False)


def without_unet(folder: Path, rounds: int) -> None:
    """Another server, whose model's UNet costs next to nothing: everything but the model is seen alone."""
    folder.mkdir()
    model = null_unet(folder / "model")
    with running(folder, "--model", str(model), "--engine", "torch") as server:
        in_process = InProcess(model, server.models()[0]["threads"])
        overhead = Overhead(server.url, in_process, 3 * rounds, "overhead with a null UNet")
        for steps in (1, STEPS):
            overhead.measure(64, steps)


def openvino(model: Path, threads: int, rounds: int) -> None:
    """In a process of its own: its threads stay out of the other figures."""
    what = f"OpenVINO's UNet in the plain pipeline, {SIDE} px"
    command = [sys.executable, "-m", "benchmarks.peers.openvino_unet", str(model), str(SIDE), str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, check=False)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return row(what, lines[-1] if done.returncode == 0 else f"not measured: {lines[-1]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--full", action="store_true", help="more rounds, client counts, loads and starts")
    parser.add_argument("--rounds", type=int, help="how often each pair is measured (default: 3, with --full 12)")
    parser.add_argument("--plot", type=Path, default=HOME / "docs" / "throughput.svg", help="default: %(default)s")
    options = parser.parse_args()
    options.rounds = options.rounds or (12 if options.full else 3)
    # an orderly end on SIGTERM too, so that every server ends
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="sd-bench-"))
    try:
        bench(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
