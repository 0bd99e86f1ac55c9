"""What TorchServe's workers have written to their logs about why they do not serve."""

import re
from pathlib import Path

from handlers.wire import read_start_failure
from launch.machine import StartError

RECOVERIES = 3  # attempts of TorchServe to start a worker that may fail: memory may be short for a while


class WorkerLogs:
    """Reads the logs of one run. Each failure is reported once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._reported: set[str] = set()
        self._bytes_read = 0  # of model_log.log

    def check(self) -> None:
        """Raises StartError if a worker has said why it cannot start, or dies again and again."""
        for sentence in self.new_failures():
            raise StartError(f"{sentence} (logs: {self._folder})")
        if self._text("ts_log.log").count("Auto recovery failed again") > RECOVERIES:
            errors = re.findall(r"\w+Error: .*", self._text("model_log.log"))
            raise StartError(f"A worker dies while it starts: {errors[-1] if errors else ''} (logs: {self._folder})")

    def new_failures(self) -> list[str]:
        """The reasons that workers have given for not starting and that this has not returned before."""
        file = self._folder / "model_log.log"
        if not file.is_file() or file.stat().st_size == self._bytes_read:
            return []
        self._bytes_read = file.stat().st_size
        lines = self._text(file.name).splitlines()
        said = dict.fromkeys(sentence for line in lines if (sentence := read_start_failure(line)))
        new = [sentence for sentence in said if sentence not in self._reported]
        self._reported.update(new)
        return new

    def _text(self, name: str) -> str:
        file = self._folder / name
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
