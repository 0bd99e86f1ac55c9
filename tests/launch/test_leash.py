"""Processes that end with the one that started them, however it ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from launch import leash
from launch.processes import own_group
from tests.support.parts import has_ended
from tests.support.running import wait_for

KEPT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, sys.argv, __name__, flush=True)
time.sleep(600)
"""
KEEPER = f"""
import subprocess, sys, time
from launch.processes import own_group
subprocess.Popen([sys.executable, {leash.__file__!r}, "kept", "--option"], stdin=subprocess.PIPE, **own_group())
time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_and_its_children_end_with_the_one_that_started_it(tmp_path: Path, end: int) -> None:
    (tmp_path / "kept.py").write_text(KEPT)
    command = [sys.executable, "-c", KEEPER]
    path = str(Path(leash.__file__).parents[1])
    with subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, **own_group()
    ) as keeper:
        assert keeper.stdout is not None
        said = keeper.stdout.readline()
        assert said.endswith(f"[{str(tmp_path / 'kept.py')!r}, '--option'] __main__\n")
        processes = psutil.Process(keeper.pid).children(recursive=True)
        assert int(said.split()[0]) in [process.pid for process in processes]
        keeper.send_signal(end)
        keeper.wait()
        wait_for(lambda: all(has_ended(process) for process in processes))
