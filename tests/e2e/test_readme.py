"""The README's commands, executed as they stand there."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.machine import free_ports
from tests.support.paths import HOME
from tests.support.running import wait_for

pytestmark = pytest.mark.e2e

README = (HOME / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == "sh"]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`make serve ARGS="--port …"`, until Ctrl-C."""
    port = free_ports(1)[0]
    assert 'make serve ARGS="--port 1400"' in README
    output = tmp_path_factory.mktemp("readme") / "output"
    with output.open("wb") as log:
        make = psutil.Popen(
            ["make", "serve", f"ARGS=--port {port}"], cwd=HOME, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: "Stop with Ctrl-C" in output.read_text() or make.poll() is not None)
        text = output.read_text()
        assert f"http://127.0.0.1:{port}" in text and "embedded" in text, text
        yield port
    finally:
        (launched,) = [child for child in make.children() if "server.py" in child.cmdline()] or [make]
        launched.send_signal(signal.SIGINT)
        make.wait(60)
    assert "Stopped." in output.read_text()


def test_two_commands_set_it_up() -> None:
    assert COMMANDS[:2] == ["make serve", "make test"]


def test_the_curl_lines_give_the_answers_that_are_shown(port: int, tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(HOME / "docs")
    shown: str | None = None
    for kind, text in BLOCKS[2:]:
        if kind == "sh":
            command = text.strip().replace(":1337", f":{port}").replace(" -o answer.json", " | tee answer.json")
            done = subprocess.run(
                ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
            )
            shown = done.stdout
            if "event-stream" in command:
                assert shown.count("event: progress") == 2 and shown.count("event: result") == 1
        elif kind == "json":
            assert shown is not None
            assert _shape(json.loads(shown)) == _shape(json.loads(text))
    assert (tmp_path / "apple.png").stat().st_size > 1000


def _shape(value: Any) -> Any:
    """The answer without its pictures' contents."""
    if isinstance(value, dict):
        return {key: "…" if key == "base64" else _shape(item) for key, item in value.items()}
    return [_shape(item) for item in value] if isinstance(value, list) else value
