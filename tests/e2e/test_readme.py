"""The README's commands, executed as they stand there."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import HOME
from tests.support.running import HANG_S, Running

pytestmark = pytest.mark.e2e

README = (HOME / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == "sh"]


def test_two_commands_set_it_up() -> None:
    assert COMMANDS[:2] == ["make serve", "make test"]
    assert 'make serve ARGS="--port 1400"' in README  # the fixture `three` starts the server so


def test_the_curl_lines_give_the_answers_that_are_shown(three: Running, tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(HOME / "docs")
    port = three.url.rpartition(":")[2]
    shown: str | None = None
    for kind, text in BLOCKS[2:]:
        if kind == "sh":
            command = text.strip().replace(":1337", f":{port}").replace(" -o answer.json", " | tee answer.json")
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=HANG_S, check=True
            )
            shown = done.stdout
            if "event-stream" in command:
                assert shown.count("event: progress") == 2 and shown.count("event: result") == 1
        elif kind == "json":
            assert shown is not None
            assert _shape(json.loads(shown)) == _shape(json.loads(text))
    assert (tmp_path / "apple.png").stat().st_size > 1000


def _shape(value: Any) -> Any:
    """The answer without its images' contents."""
    if isinstance(value, dict):
        return {key: "…" if key == "base64" else _shape(item) for key, item in value.items()}
    return [_shape(item) for item in value] if isinstance(value, list) else value
