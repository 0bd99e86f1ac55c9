"""Runs a module as `python -m` does, and ends it with all its children when server.py ends, also by kill -9.

`python leash.py MODULE ARGUMENTS`, with a pipe from server.py as its standard input, and in a process group of its own.
Nobody writes into the pipe: it ends when server.py does.
"""

import os
import runpy
import signal
import sys
import threading


def end_with_parent(pipe: int) -> None:
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
    threading.Thread(target=end_with_parent, args=(pipe,), daemon=True).start()
    del sys.argv[0]
    sys.path[0] = os.getcwd()  # as `python -m` has it, instead of this file's folder
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
