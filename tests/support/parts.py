"""The processes of a running server, to be killed, and long requests that run meanwhile."""

import contextlib
from pathlib import Path

import psutil

from tests.support.running import Running

LONG = {"prompt": "a house", "num_inference_steps": 250, "num_outputs": 2}
CLIENTS = 4


def parts(instance: Running) -> dict[str, psutil.Process]:
    """Those that live."""
    workers = instance.workers()
    found = {"worker": workers[0]} if workers else {}
    for process in instance.process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "java" in Path(process.exe()).name:
                found["java"] = process
            elif process.cmdline()[-2:] == ["-m", "proxy"]:
                found["proxy"] = process
    return found
