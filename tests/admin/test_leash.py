"""Processes that end with the one that started them, however it ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from admin import leash
from admin.leash import own_group
from tests.support.parts import has_ended
from tests.support.paths import HOME
from tests.support.running import wait_for

KEPT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, sys.argv, __name__, flush=True)
time.sleep(600)
"""
STARTS = """
import subprocess, sys, time
from admin.leash import held, own_group
subprocess.Popen(held(["kept", "--option"]), stdin=subprocess.PIPE, **own_group())
time.sleep(600)
"""
RUNS = """
from admin import leash
leash.run(["kept", "--option"])
"""


def test_a_module_is_run_as_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "short.py").write_text("import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(3)")
    done = leash.run(["short", "--option"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (3, "['--option'] \n")


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("keeper", [STARTS, RUNS])
def test_a_process_and_its_children_end_with_the_one_that_started_it(tmp_path: Path, keeper: str, end: int) -> None:
    (tmp_path / "kept.py").write_text(KEPT)
    command = [sys.executable, "-c", keeper]
    path = str(Path(leash.__file__).parents[1])
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, **own_group()
    ) as starter:
        assert starter.stdout is not None
        said = starter.stdout.readline()
        assert said.endswith(f"[{str(tmp_path / 'kept.py')!r}, '--option'] __main__\n")
        processes = psutil.Process(starter.pid).children(recursive=True)
        assert int(said.split()[0]) in [process.pid for process in processes]
        starter.send_signal(end)
        starter.wait()
        wait_for(lambda: all(has_ended(process) for process in processes))


def test_the_starter_and_the_admin_commands_start_nothing_else_without_it() -> None:
    starts = re.compile(r"subprocess\.(run|call|check_\w+|Popen)\(|psutil\.Popen\(")
    modules = [file for folder in ("admin", "launch") for file in (HOME / folder).glob("*.py")]
    found = {str(file.relative_to(HOME)) for file in (*modules, HOME / "server.py") if starts.search(file.read_text())}
    # Java is asked its version and ends by itself; what runs for long is held
    assert found == {"admin/leash.py", "launch/processes.py", "launch/doctor.py"}
    assert "leash.held(command)" in (HOME / "launch" / "processes.py").read_text()


@pytest.mark.parametrize(
    ("os_name", "options"), [("posix", {"start_new_session": True}), ("nt", {"creationflags": 512})]
)
def test_children_get_a_process_group_of_their_own(
    monkeypatch: pytest.MonkeyPatch, os_name: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(leash.subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(leash.os, "name", os_name)
        found = leash.own_group()
    assert found == options
