"""A server's run directory, locked for as long as it runs: the next start sweeps those whose server is gone."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from admin.running_server import RUN_FILE

PREFIX = "sd-server-"
LOCK = "lock"
SOCKETS = "tmp"  # the folder of TorchServe's temporary files, or a link to it


def make_run_directory() -> tuple[Path, FileLock]:
    """A new directory, and its lock, which is to be held until the directory is removed."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = FileLock(folder / LOCK)
    lock.acquire()
    return folder, lock


def sweep() -> None:
    """Removes what servers have left that were killed."""
    for file in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{RUN_FILE}"):
        # one of another version, or one that another user has put into a folder that all share
        if not (file.parent / LOCK).is_file() or not _is_own(file.parent):
            continue
        try:
            with FileLock(file.parent / LOCK, timeout=0):
                shutil.rmtree((file.parent / SOCKETS).resolve(), ignore_errors=True)
        except (Timeout, OSError):  # it runs
            continue
        shutil.rmtree(file.parent, ignore_errors=True)


def _is_own(folder: Path) -> bool:
    state = folder.lstat()
    return stat.S_ISDIR(state.st_mode) and (os.name != "posix" or state.st_uid == os.geteuid())
