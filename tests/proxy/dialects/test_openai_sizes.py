"""OpenAI's sizes, of which many are larger than the server's, and LoRAs as other servers take them."""

import base64
import json
from typing import Any

import pytest

from handlers.wire import Progress, Result
from tests.support.dialects import DATA, MODEL, result, talking

pytestmark = pytest.mark.anyio

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


@pytest.mark.parametrize(
    ("asked", "generated"),
    [
        ("1536x1024", "1024x680"), ("1024x1536", "680x1024"), ("1792x1024", "1024x584"), ("2048x2048", "1024x1024"),
        ("3840x2160", "1024x576"), ("1024x1024", "1024x1024"), ("256x256", "256x256"),
        # what the server itself refuses
        ("4096x4096", "4096x4096"), ("3840x8", "3840x8"), ("1000x999", "1000x999"), ("0x0", "0x0"),
    ],
)  # fmt: skip
async def test_a_size_beyond_the_servers_is_generated_smaller_with_a_warning(asked: str, generated: str) -> None:
    width, height = map(int, generated.split("x"))
    async with talking(result(size=(width, height))) as (http, served):
        answer = await http.post(GENERATIONS, json={"prompt": "x", "size": asked})
    assert (served.native["width"], served.native["height"]) == (str(width), str(height))
    assert answer.json()["size"] == generated
    warning = f"size {asked} is more than is generated here: the images have {generated}, of the same shape."
    assert answer.json().get("warnings", []) == ([warning] if asked != generated else [])


async def test_loras_as_other_servers_take_them() -> None:
    async with talking() as (http, served):
        for lora, prompt in [
            ({"name": "ink", "scale": 0.5, "path": "/a"}, "x <lora:ink:0.5>"),
            ([{"name": "ink"}, {"name": "oil"}], "x <lora:ink:1> <lora:oil:1>"),
        ]:
            answer = await http.post(GENERATIONS, json={"prompt": "x", "lora": lora})
            assert answer.status_code == 200 and served.native["prompt"] == prompt
        answer = await http.post(GENERATIONS, json={"prompt": "x", "lora": {"name": "ink", "weight": 0.5}})
        assert answer.json()["warnings"] == ["lora: 'weight' has no effect."]


HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (640).to_bytes(4) + (448).to_bytes(4)
TEXT = base64.b64encode(HEAD + b"\x08\x06 and more").decode()


@pytest.mark.parametrize(
    ("path", "sent", "size"),
    [
        (GENERATIONS, {}, "768x512"),  # the model's own
        (GENERATIONS, {"size": "auto"}, "768x512"),
        (GENERATIONS, {"size": "64x32"}, "64x32"),
        (GENERATIONS, {"size": "2048x2048"}, "1024x1024"),
        (EDITS, {"image": TEXT}, "640x448"),
        (EDITS, {"image": f"data:image/png;base64,{TEXT}", "size": "64x32"}, "640x448"),
        (EDITS, {"image": DATA}, "auto"),  # which is cut short
        (EDITS, {"image": "/9j/" + TEXT}, "auto"),
        (EDITS, {"image": "x"}, "auto"),
    ],
)
async def test_partial_images_tell_the_size_of_the_answer(
    path: str, sent: dict[str, Any], size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODEL | {"defaults": {"num_inference_steps": 20, "width": 768, "height": 512}}
    monkeypatch.setattr("tests.support.dialects.DESCRIPTION", Result(json.dumps({"models": [model]}).encode()).line())
    async with talking(Progress(1, 1, "p").line(), result()) as (http, _):
        answer = await http.post(path, json={"prompt": "x", "stream": True, "partial_images": 1} | sent)
    told = answer.text.partition("\n\n")[0].partition("data: ")[2]
    assert json.loads(told)["size"] == size


async def test_a_model_that_tells_no_size_has_none() -> None:
    async with talking(Progress(1, 1, "p").line(), result()) as (http, _):
        answer = await http.post(GENERATIONS, json={"prompt": "x", "stream": True, "partial_images": 1})
        assert '"size": "auto"' in answer.text
