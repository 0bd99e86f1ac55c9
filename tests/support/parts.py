"""The processes of a running server, faults that befall them, and long requests that run meanwhile."""

import contextlib
import signal
import time
from pathlib import Path

import psutil

from tests.support.running import Running, wait_for

LONG = {"prompt": "a house", "num_inference_steps": 250, "num_outputs": 2}
CLIENTS = 4
STOPPED_S = 3  # how long a process stands still
PROOF_S = 120  # within which a fault must have happened: a proxy that is told to end finishes its requests before


def parts(instance: Running) -> dict[str, psutil.Process]:
    """Those that live."""
    workers = instance.workers()
    found = {"worker": workers[0]} if workers else {}
    for process in instance.process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "java" in Path(process.exe()).name:
                found["java"] = process
            elif process.cmdline()[-1:] == ["proxy"]:
                found["proxy"] = process
    return found


def inflict(
    target: psutil.Process, number: signal.Signals, sent_to: psutil.Process | None = None, proof_s: float = PROOF_S
) -> None:
    """Sends a signal to a process, and returns when it has had its effect. A process that is stopped goes on then.

    Args:
        sent_to: another process that gets the signal instead, so that this fails.
    """
    (sent_to or target).send_signal(number)
    if number == signal.SIGSTOP:
        try:
            wait_for(lambda: target.status() == psutil.STATUS_STOPPED, proof_s)
            time.sleep(STOPPED_S)
            assert target.status() == psutil.STATUS_STOPPED
        finally:
            (sent_to or target).send_signal(signal.SIGCONT)
        wait_for(lambda: target.status() != psutil.STATUS_STOPPED, proof_s)
    else:
        wait_for(lambda: has_ended(target), proof_s)


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
