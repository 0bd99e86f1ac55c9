"""JavaScript's libraries against a real server: OpenAI's, Vercel's AI SDK, node-sd-webui. See package-lock.json."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import LIMIT
from tests.support.paths import HOME
from tests.support.running import HANG_S, Running

OLDEST = 20  # of Node.js, for these versions


def _node() -> str | None:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return node if int(version.lstrip("v").partition(".")[0]) >= OLDEST else None


node = _node()
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(node is None, reason=f"needs Node.js {OLDEST} or later, with npm"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs, beside the libraries that they import."""
    folder = tmp_path_factory.mktemp("javascript")
    here = Path(__file__).parent
    for file in (*here.glob("*.mjs"), *here.glob("package*.json")):
        shutil.copy(file, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, program: str, server: Running) -> dict[str, Any]:
    command = [str(node), program, server.url, str(HOME / "docs" / "mask.png"), str(LIMIT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def test_openais_library(folder: Path, server: Running) -> None:
    seen = run(folder, "openai_library.mjs", server)
    assert seen["version"] == "6.49.0" and seen["models"] == ["embedded"]
    assert seen["generation"] == ["256x256", "medium", [3, 4], 0]
    size, output_format, head, warnings = seen["edit"]
    assert (size, output_format, head) == ("256x256", "jpeg", "ffd8ff") and "no transparent part" in warnings[0]
    assert seen["events"] == [["image_generation.partial_image", True]] * 3 + [["image_generation.completed", True]]
    assert seen["editEvents"] == [["image_edit.partial_image", True]] * 3 + [["image_edit.completed", True]]
    assert seen["errors"] == [
        ["BadRequestError", "n", None, True],
        ["NotFoundError", "model", "model_not_found", True],
        ["BadRequestError", "background", None, True],
        ["BadRequestError", "n", None, True],
    ]
    assert seen["full"] == [429, "RateLimitError", None, "rate_limit_exceeded", True]


def test_the_ai_sdk(folder: Path, server: Running) -> None:
    """Its version 5 has neither edits nor streams of images."""
    seen = run(folder, "ai_sdk.mjs", server)
    assert seen.keys() == {"openai", "compatible"}
    for found in seen.values():
        assert found["images"] == [["image/png", True]] * 2
        status, message, is_tried_again = found["refused"]
        assert (status, is_tried_again) == (400, False) and message.startswith("width must be a multiple of 8")
        status, message, is_tried_again = found["full"]
        assert (status, is_tried_again) == (429, True) and f"{LIMIT} open requests, the limit" in message


def test_node_sd_webui(folder: Path, server: Running) -> None:
    seen = run(folder, "node_sd_webui.mjs", server)
    assert seen["version"] == "0.0.8" and seen["error"].startswith("Unprocessable")
    assert seen["txt2img"] == [2, [3, 4]] and seen["img2img"] == [2, [3, 4]]
    told = seen["pngInfo"]  # it goes by the places of the values, as they were before `Schedule type`
    assert told["prompt"] == "a red apple" and told["negativePrompt"] == "blurred"
    assert (told["steps"], told["samplingMethod"]) == (4, "Euler a")
