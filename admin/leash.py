"""Runs a module as `python -m` does, and ends it with all its children when its starter ends, also by kill -9.

`python leash.py MODULE ARGUMENTS`, with a pipe from the process that starts it as its standard input, and in a process
group of its own. Nobody writes into the pipe: it ends when that process does.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any


def run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run, for a module with its arguments, which ends with this process; its output is text.

    An exception here, such as for Ctrl-C, ends that process alone, which is to have no children.
    """
    pipe, own_end = os.pipe()
    try:
        return subprocess.run(held(command), stdin=pipe, text=True, check=False, **own_group(), **options)
    finally:
        os.close(pipe)
        os.close(own_end)


def held(command: Sequence[str]) -> list[str]:
    """The command line of this file, for a module with its arguments."""
    return [sys.executable, __file__, *command]


def own_group() -> dict[str, Any]:
    """Popen's options for a process in its own group: Ctrl-C reaches this process alone, which ends them in order."""
    if os.name == "posix":
        return {"start_new_session": True}
    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}  # not run on Windows so far


def end_with_starter(pipe: int) -> None:
    os.read(pipe, 1)
    if os.name == "posix":
        os.killpg(os.getpgrp(), signal.SIGKILL)
        return
    import psutil  # not run on Windows so far

    own = psutil.Process()
    for process in (*own.children(recursive=True), own):
        process.kill()


if __name__ == "__main__":
    pipe = os.dup(0)  # which no child inherits
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    threading.Thread(target=end_with_starter, args=(pipe,), daemon=True).start()
    del sys.argv[0]
    sys.path[0] = os.getcwd()  # as `python -m` has it, instead of this file's folder
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
