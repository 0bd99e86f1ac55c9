"""What a server that was killed has left, and what the next start makes of it."""

import os
import tempfile
from pathlib import Path

import pytest

from admin.running_server import RUN_FILE
from launch import machine
from launch.run_directory import make_run_directory, sweep


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def a_run() -> tuple[Path, Path, object]:
    """Its directory, the folder of its sockets, and its lock."""
    folder, lock = make_run_directory()
    (folder / RUN_FILE).write_text("{}")
    (folder / "logs").mkdir()
    return folder, machine.folder_for_sockets(folder), lock


@pytest.mark.parametrize("longest", [machine.MAX_SOCKET_PATH, 10])
def test_what_a_dead_server_left_is_swept_and_a_living_one_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    monkeypatch.setattr(machine, "MAX_SOCKET_PATH", longest)  # those of a short one are elsewhere
    dead, dead_sockets, lock = a_run()
    living, living_sockets, held = a_run()
    del lock  # as the end of a process does, the lock goes with it
    sweep()
    assert [*dead.iterdir()] == [dead / "logs"] and not dead_sockets.exists()
    assert living.is_dir() and living_sockets.is_dir() and held
    del held
    (living / "logs").rmdir()
    sweep()
    assert not living.exists() and not living_sockets.exists()


def test_the_logs_of_a_server_that_failed_stay(tmp_path: Path) -> None:
    logs = tmp_path / "sd-server-failed" / "logs"
    logs.mkdir(parents=True)
    sweep()
    assert logs.is_dir()


def test_what_another_user_has_put_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    folder, _, lock = a_run()
    del lock
    (tmp_path / "sd-server-link").symlink_to(folder, target_is_directory=True)
    sockets = folder / "tmp"  # a link already where the folder's own path is long
    sockets.unlink() if sockets.is_symlink() else sockets.rmdir()
    sockets.symlink_to(precious, target_is_directory=True)
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    sweep()
    assert precious.is_dir() and folder.is_dir()


def test_one_that_was_killed_before_it_had_started_is_swept_later(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, lock = make_run_directory()
    del lock
    sweep()
    assert folder.is_dir()  # it may only be starting
    monkeypatch.setattr("launch.run_directory.STARTING_S", 0)
    sweep()
    assert not folder.exists()


def test_what_cannot_be_removed_keeps_no_server_from_starting() -> None:
    folder, _, lock = a_run()
    del lock
    (folder / "logs").rmdir()
    (folder / "link").symlink_to(folder / "nothing")
    sweep()
    assert (folder / "link").is_symlink()
