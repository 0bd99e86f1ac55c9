"""OpenAI's own Python library, an old version and a new one, against a real server."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.web.page import FOLDER
from tests.clients.conftest import LIMIT, python_with, run
from tests.support.paths import HOME
from tests.support.running import Running

pytestmark = pytest.mark.clients

VERSIONS = ("1.109.1", "3.57.0")


@pytest.fixture(scope="module", params=VERSIONS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a venv that has the library."""
    return python_with(tmp_path_factory.mktemp("openai"), f"openai=={request.param}")


def test_the_library_understands_every_answer(library: Path, server: Running) -> None:
    program = str(Path(__file__).with_name("openai_library.py"))
    mask = str(HOME / "docs" / "mask.png")
    seen = json.loads(run(library, "-W", "ignore", program, server.url, mask, str(LIMIT)))
    assert seen["version"] in VERSIONS and seen["models"] == ["embedded"]
    assert seen["generation"] == ["256x256", "medium", [3, 4], 0]
    size, output_format, head, warnings = seen["edit"]
    assert (size, output_format, head) == ("256x256", "jpeg", "ffd8ff") and "no transparent part" in warnings[0]
    assert seen["variation"].startswith(f"{server.url}/v1/images/files/img_")
    partial = ["ImageGenPartialImageEvent", "image_generation.partial_image", True]
    assert seen["events"] == [partial] * 3 + [["ImageGenCompletedEvent", "image_generation.completed", True]]
    assert seen["errors"] == [
        ["BadRequestError", "n", None, True],
        ["NotFoundError", "model", "model_not_found", True],
        ["BadRequestError", "background", None, True],
        ["BadRequestError", "n", None, True],
    ]
    assert seen["full"] == [429, "RateLimitError", "rate_limit_exceeded"]


def of_the_readme() -> str:
    text = (HOME / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(program)


def of_the_page() -> str:
    """As /docs shows it."""
    tags = json.loads((FOLDER / "openapi.json").read_text(encoding="utf-8"))["tags"]
    return next(str(tab["x-python"]) for tab in tags if tab["name"] == "OpenAI")


@pytest.mark.parametrize("read", [of_the_readme, of_the_page])
def test_the_documents_programs_run(library: Path, server: Running, tmp_path: Path, read: Callable[[], str]) -> None:
    program = read()
    run(library, "-c", program.replace("http://127.0.0.1:1337", server.url), cwd=tmp_path)
    assert (tmp_path / "apple.png").stat().st_size > 1000
