"""The lines of /docs, as users copy them: curl's in a shell, and Python's programs. OpenAI's: tests/clients."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy.web.page import FOLDER
from tests.support.paths import HOME
from tests.support.running import HANG_S, Running
from tests.support.samples import file_bytes, sample_image

pytestmark = pytest.mark.e2e

DOCUMENT: dict[str, Any] = json.loads((FOLDER / "openapi.json").read_text(encoding="utf-8"))
TABS = {tab["name"]: tab for tab in DOCUMENT["tags"]}
OPERATIONS = [
    operation["x-curl"]
    for path, methods in DOCUMENT["paths"].items()
    for operation in methods.values()
    if "x-curl" in operation and "url_path" not in path
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Has the files that the lines name."""
    (tmp_path / "apple.png").write_bytes(file_bytes(sample_image(256, 256)))
    shutil.copy(HOME / "docs" / "mask.png", tmp_path)
    return tmp_path


def run(command: list[str], server: Running, folder: Path) -> str:
    command = [part.replace("http://127.0.0.1:1337", server.url) for part in command]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("line", [*OPERATIONS, *(tab["x-curl"] for tab in TABS.values())])
def test_curls_lines_run(line: str, combined: Running, folder: Path) -> None:
    (folder / "apple.png").touch()
    before = (folder / "apple.png").read_bytes()
    said = run(["bash", "-c", line], combined, folder)
    if "-o answer.json" in line:
        answer = json.loads((folder / "answer.json").read_text())
        assert answer.get("images") or answer.get("data"), answer
    elif "-o apple.png" in line:
        after = (folder / "apple.png").read_bytes()
        assert after.startswith(b"\x89PNG") and after != before
    else:
        assert said and '"failure"' not in said


@pytest.mark.parametrize("name", ["Native", "AUTOMATIC1111", "Jobs"])
def test_pythons_programs_run(name: str, combined: Running, tmp_path: Path) -> None:
    run([sys.executable, "-c", TABS[name]["x-python"]], combined, tmp_path)
    (image,) = tmp_path.glob("apple-*.png")
    assert image.read_bytes().startswith(b"\x89PNG")


def test_every_operation_has_its_tab() -> None:
    used = {tag for methods in DOCUMENT["paths"].values() for one in methods.values() for tag in one["tags"]}
    assert used == set(TABS)
