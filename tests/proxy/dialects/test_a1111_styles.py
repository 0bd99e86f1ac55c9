"""The operator's styles."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.dialects import Described
from tests.support.torchserve import client

pytestmark = pytest.mark.anyio

FILE = """\ufeffname,prompt,negative_prompt
Ink,"{prompt}, ink, drawn",colour
Night,at night,
"""


async def ask(folder: Path, sent: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    served = Described()
    async with client(served, config=str(folder / "config.json")) as http:
        answer = await http.post("/sdapi/v1/txt2img", json=sent)
    return answer, served.native if served.asked else {}


async def test_their_texts_are_added(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_text(FILE, encoding="utf-8")
    sent = {"prompt": "a cat", "negative_prompt": "blur", "styles": ["Ink", "Night", "None"]}
    answer, native = await ask(tmp_path, sent)
    assert native["prompt"] == "a cat, ink, drawn, at night" and native["negative_prompt"] == "blur, colour"
    assert '"styles": ["Ink", "Night"]' in answer.json()["info"]
    assert answer.json()["parameters"]["prompt"] == "a cat"
    async with client(Described(), config=str(tmp_path / "config.json")) as http:
        assert (await http.get("/sdapi/v1/prompt-styles")).json() == [
            {"name": "Ink", "prompt": "{prompt}, ink, drawn", "negative_prompt": "colour"},
            {"name": "Night", "prompt": "at night", "negative_prompt": ""},
        ]


async def test_a_prompt_without_styles_stays_as_it_is(tmp_path: Path) -> None:
    _, native = await ask(tmp_path, {"prompt": " a cat ", "styles": []})
    assert native["prompt"] == " a cat "


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        ({"styles": "Ink"}, 422, "styles must be a list of names."),
        ({"styles": ["Oil"]}, 200, "styles: 'Oil' not found"),
    ],
)
async def test_what_is_said_of_wrong_ones(tmp_path: Path, sent: dict[str, Any], status: int, sentence: str) -> None:
    answer, _ = await ask(tmp_path, sent)
    assert answer.status_code == status and sentence in answer.text


async def test_a_file_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "styles.csv").write_bytes(b"name,prompt\n\xff,x\n")
    answer, _ = await ask(tmp_path, {"styles": ["Ink"]})
    assert answer.status_code == 500 and "styles.csv is faulty" in answer.json()["detail"]
