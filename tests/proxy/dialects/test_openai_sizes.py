"""OpenAI's sizes, of which many are larger than the server's, and LoRAs as other servers take them."""

import pytest

from tests.support.dialects import result, talking

pytestmark = pytest.mark.anyio

GENERATIONS = "/v1/images/generations"


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
