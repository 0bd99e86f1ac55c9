"""What the workers' logs say about a start that fails."""

from pathlib import Path

import pytest

from handlers.wire import start_failure_line
from launch.machine import StartError
from launch.worker_logs import RECOVERIES, WorkerLogs


def write(folder: Path, name: str, *lines: str) -> None:
    with (folder / name).open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def test_without_logs_there_is_nothing_to_say(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path / "none")
    logs.check()
    assert logs.new_failures() == []


def test_each_failure_is_reported_once(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    write(tmp_path, "model_log.log", f"12:00 {start_failure_line('The model is damaged.')}", "12:00 other words")
    assert logs.new_failures() == ["The model is damaged."]
    assert logs.new_failures() == []
    # the worker is started again, and fails again
    write(
        tmp_path,
        "model_log.log",
        f"12:01 {start_failure_line('The model is damaged.')}",
        f"12:01 {start_failure_line('The disk is full.')}",
    )
    assert logs.new_failures() == ["The disk is full."]


def test_a_failure_ends_the_start_and_names_the_logs(tmp_path: Path) -> None:
    write(tmp_path, "model_log.log", start_failure_line("The model is damaged."))
    with pytest.raises(StartError, match=r"The model is damaged\. \(logs: "):
        WorkerLogs(tmp_path).check()


def test_a_worker_that_dies_again_and_again_ends_the_start_with_its_last_error(tmp_path: Path) -> None:
    logs = WorkerLogs(tmp_path)
    write(tmp_path, "model_log.log", "ImportError: first", "ValueError: last")
    write(tmp_path, "ts_log.log", *["Auto recovery failed again"] * RECOVERIES)
    logs.check()
    write(tmp_path, "ts_log.log", "Auto recovery failed again")
    with pytest.raises(StartError, match="ValueError: last"):
        logs.check()
