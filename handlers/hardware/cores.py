"""The machine's cores, divided among the workers that draw, or load, at the moment.

Alone, a worker uses all of them. Several that use all of them at once wait for each other's threads at every small
operation: six clients of three workers on two cores got a quarter of the pictures (docs/performance.md).
"""

import contextlib
import os
import tempfile
from pathlib import Path

import torch

try:
    import fcntl
except ImportError:  # Windows, where each worker goes on using all cores
    fcntl = None  # type: ignore[assignment]

SLOTS = 8  # workers that are told apart


class Cores:
    """This worker's share. The workers know of each other by locks on files, which end with their process.

    Args:
        folder: where the files are; the workers of one machine have the same.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self._all = self._used = torch.get_num_threads()
        self._slots: list[int] = []
        self._opened = False
        self._own: int | None = None

    def share(self) -> None:
        """Counts this worker among those that draw, and sets its thread's number of torch threads to its share."""
        if self._own is None:
            self._own = next((slot for slot in self._open() if self._lock(slot, exclusive=True)), None)
        others = 0
        for slot in self._slots:
            if slot != self._own:
                if self._lock(slot, exclusive=False):
                    self._unlock(slot)
                else:
                    others += 1
        share = max(1, self._all // (1 + others))
        if share != self._used:
            torch.set_num_threads(share)
            self._used = share

    def leave(self) -> None:
        """Leaves the cores to the others."""
        if self._own is not None:
            self._unlock(self._own)
            self._own = None

    def _open(self) -> list[int]:
        if not self._opened and fcntl is not None:
            self._opened = True
            for i in range(SLOTS):
                # another user's, in a folder that several share; or a file system without locks
                with contextlib.suppress(OSError):
                    file = os.open(self._folder / f"sd-cores-{i}.lock", os.O_CREAT | os.O_RDONLY, 0o666)
                    self._lock(file, exclusive=False) and self._unlock(file)
                    self._slots.append(file)
        return self._slots

    @staticmethod
    def _lock(slot: int, exclusive: bool) -> bool:
        try:
            fcntl.flock(slot, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @staticmethod
    def _unlock(slot: int) -> None:
        fcntl.flock(slot, fcntl.LOCK_UN)
