"""The old name of a command that has moved."""

import subprocess
import sys

from tests.support.paths import HOME


def test_the_old_command_runs_the_new_one_and_names_it() -> None:
    command = [sys.executable, "-m", "handlers.reload", "--help"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stderr == "This command has moved: python -m admin.reload\n"
    assert done.stdout.startswith("usage: python -m admin.reload")
