"""A server's run directory, locked for as long as it runs: the next start sweeps those whose server is gone."""

import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from admin.running_server import PREFIX, RUN_FILE

STARTING_S = 60  # after which a server has locked its directory
LOCK = "lock"
LOGS = "logs"
SOCKETS = "tmp"  # the folder of TorchServe's temporary files, or a link to it


def make_run_directory() -> tuple[Path, FileLock]:
    """A new directory, and its lock, which is to be held until the directory is removed."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = FileLock(folder / LOCK)
    lock.acquire()
    return folder, lock


def sweep() -> None:
    """Removes what servers have left that were killed, but for their logs."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        # it runs, or another start has been quicker; what cannot be removed keeps no server from starting
        with suppress(Timeout, OSError):
            _sweep(lock.parent, lock)


def _sweep(folder: Path, lock: Path) -> None:
    if not _is_own(folder):  # of another user, in a folder that all share
        return
    if not (folder / RUN_FILE).is_file() and time.time() - lock.stat().st_mtime < STARTING_S:
        return  # it may not have locked it yet
    sockets = folder / SOCKETS
    with FileLock(lock, timeout=0):
        # a link's target alone: rmtree refuses a link there
        shutil.rmtree(sockets.readlink() if sockets.is_symlink() else sockets, ignore_errors=True)
        sockets.unlink(missing_ok=True)
        for left in folder.iterdir():
            if left.is_dir() and left.name != LOGS:
                shutil.rmtree(left, ignore_errors=True)
            elif left.is_file() and left != lock:
                left.unlink()
    lock.unlink(missing_ok=True)
    if not (folder / LOGS).is_dir():
        folder.rmdir()


def _is_own(folder: Path) -> bool:
    state = folder.lstat()
    return stat.S_ISDIR(state.st_mode) and (os.name != "posix" or state.st_uid == os.geteuid())
