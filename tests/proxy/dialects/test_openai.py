"""OpenAI's Images API in front of a played TorchServe: what becomes of a request, and of its answer."""

import json
from typing import Any

import httpx
import pytest

from handlers.wire import Progress
from tests.support.dialects import DATA, FILE, Described, result, talking
from tests.support.torchserve import client, serving

pytestmark = pytest.mark.anyio

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


async def test_a_prompt_becomes_an_image() -> None:
    async with talking() as (http, served):
        answer = await http.post(GENERATIONS, json={"model": "gpt-image-1", "prompt": "a red apple"})
    body = answer.json()
    assert served.asked == [("txt2img", {"prompt": "a red apple"})]
    assert body.pop("created") > 1e9
    assert body == {
        "data": [{"b64_json": DATA, "seed": 7, "nsfw": False, "width": 64, "height": 32}],
        "background": "opaque", "output_format": "png", "quality": "medium", "size": "64x32",
        "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
                  "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({"n": 2, "size": "64X32"}, {"num_outputs": "2", "width": "64", "height": "32"}),
        ({"n": None, "size": "auto", "quality": "auto", "background": "opaque"}, {}),
        ({"quality": "low"}, {"num_inference_steps": "10"}),
        ({"quality": "hd"}, {"num_inference_steps": "30"}),
        ({"quality": "max"}, {"num_inference_steps": "50"}),  # the server's limit
        ({"quality": "standard", "output_format": "webp"}, {"output_format": "webp"}),
        ({"output_format": "jpeg", "output_compression": 0}, {"output_format": "jpeg", "output_quality": "1"}),
        ({"steps": 7, "cfg_scale": 3.5, "seed": "-1"},
         {"num_inference_steps": "7", "guidance_scale": "3.5", "seed": "-1"}),
        ({"negative_prompt": "blue", "scheduler": "Euler a"}, {"negative_prompt": "blue", "scheduler": "Euler a"}),
        ({"prompt": ""}, {"prompt": ""}),
        ({"prompt": 'a cat <sd_cpp_extra_args>{"steps": 7, "cfg_scale": 2.5, "seed": 3, "negative_prompt": "blue"}'
                    "</sd_cpp_extra_args>"},
         {"prompt": "a cat", "num_inference_steps": "7", "guidance_scale": "2.5", "seed": "3",
          "negative_prompt": "blue"}),
        ({"stream": True, "partial_images": 2}, {"preview": "true"}),
    ],
)  # fmt: skip
async def test_what_has_a_native_field(sent: dict[str, Any], native: dict[str, str]) -> None:
    async with talking() as (http, served):
        answer = await http.post(GENERATIONS, json={"prompt": "x"} | sent)
    assert answer.status_code == 200 and "warnings" not in answer.text
    assert served.native == {"prompt": "x"} | native


async def test_what_has_no_effect_is_named_without_its_value() -> None:
    sent = {"prompt": "x", "user": "me", "auth": "SECRET", "moderation": "auto", "output_compression": 50,
            "partial_images": 1, "quality": "splendid", "style": None}  # fmt: skip
    async with talking(result(warnings=("The native one.",))) as (http, _):
        answer = await http.post(GENERATIONS, json=sent)
    warnings = answer.json()["warnings"]
    assert "user, auth have no effect here." in warnings and warnings[-1] == "The native one."
    assert len(warnings) == 5 and "SECRET" not in answer.text


@pytest.mark.parametrize(
    ("sent", "param", "sentence"),
    [
        ({"size": "big"}, "size", "size must be WIDTHxHEIGHT"),
        ({"background": "transparent"}, "background", "background must be opaque"),
        ({"response_format": "png"}, "response_format", "response_format must be"),
        ({"stream": "perhaps"}, "stream", "stream must be"),
        ({"stream": True, "partial_images": 4}, "partial_images", "from 0 to 3"),
        ({"n": [1]}, "n", "n must be text or a number, not a list."),
        ({"prompt": {"text": "x"}}, "prompt", "not an object"),
        ({"steps": 3, "num_inference_steps": 4}, "steps", "mean the same"),
        ({"frame_count": 3}, "frame_count", "frame_count has no meaning here"),
        ({"lora": "ink"}, "lora", "lora must have a name"),
        ({"lora": {"name": "a>b"}}, "lora", "lora must have a name"),
        ({"prompt": "x <sd_cpp_extra_args>{steps: 2}</sd_cpp_extra_args>"}, "prompt", "prompt must be a JSON object: "),
        ({"prompt": "x <sd_cpp_extra_args>[2]</sd_cpp_extra_args>"}, "prompt", "sd_cpp_extra_args in prompt must be"),
        ({"prompt": 'x <sd_cpp_extra_args>{"steps": 2}'}, "prompt", "sd_cpp_extra_args in prompt must be"),
        ({"prompt": f"<sd_cpp_extra_args>{'[' * 9_999}</sd_cpp_extra_args>"}, "prompt", "sd_cpp_extra_args in prompt"),
    ],
)
async def test_what_is_refused_before_anything_is_generated(sent: Any, param: str, sentence: str) -> None:
    async with talking() as (http, served):
        answer = await http.post(GENERATIONS, json={"prompt": "x"} | sent)
    error = answer.json()["error"]
    assert answer.status_code == 400 and sentence in error["message"] and not served.asked
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, None)
    assert answer.headers["x-should-retry"] == "false"


async def test_what_has_no_effect_in_the_prompts_arguments_is_named() -> None:
    arguments = '{"steps": 7, "sample_params": {"eta": 1}, "prompt": "y", "n": null, "seed": ""}'
    prompt = f"<sd_cpp_extra_args>{arguments}</sd_cpp_extra_args> a cat <sd_cpp_extra_args>{{}}</sd_cpp_extra_args>"
    async with talking() as (http, served):
        answer = await http.post(GENERATIONS, json={"prompt": prompt, "steps": 9, "seed": 5})
    assert served.native == {"prompt": "a cat", "num_inference_steps": "7", "seed": "5"}
    assert answer.json()["warnings"] == [
        "sd_cpp_extra_args.sample_params, sd_cpp_extra_args.prompt have no effect here.",
        "steps: the value from sd_cpp_extra_args in the prompt was used.",
    ]


@pytest.mark.parametrize(("sent", "told"), [("jpg", "jpeg"), ("JPEG", "jpeg"), ("PNG", "png"), ("WebP", "webp")])
async def test_the_format_is_told_as_openai_spells_it(sent: str, told: str) -> None:
    async with talking() as (http, _):
        answer = await http.post(GENERATIONS, json={"prompt": "x", "output_format": sent, "output_compression": 50})
    assert answer.json()["output_format"] == told and ("warnings" in answer.json()) == (told == "png")


@pytest.mark.parametrize(
    "body", [b"", b"prompt=x", b"[1]", b"{", b'{"prompt": "x", "prompt": "y"}', b"\xff{", b"{" * 9, b'{"a":' * 9999]
)
async def test_a_body_that_is_none(body: bytes) -> None:
    async with talking() as (http, _):
        answer = await http.post(GENERATIONS, content=body)
        assert answer.status_code == 400 and answer.json()["error"]["message"]
        answer = await http.post(EDITS, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert answer.status_code == 400 and answer.json()["error"]["message"]


async def test_a_native_refusal_in_the_clients_words() -> None:
    for sentence, message, param in [
        ("num_outputs must be a whole number from 1 to 8, not 9.", "n must be a whole number from 1 to 8, not 9.", "n"),
        ("num_inference_steps must be a …", "steps must be a …", "steps"),
        ("width must be a multiple of 8", "width must be a multiple of 8", "size"),
        ("seed + num_outputs - 1 must be", "seed + n - 1 must be", "seed"),
    ]:
        line = json.dumps({"error": {"status": 400, "message": sentence}}).encode() + b"\n"
        async with talking(line) as (http, _):
            answer = await http.post(GENERATIONS, json={"prompt": "x", "size": "9x9", "n": 9, "steps": 999, "seed": 1})
        assert answer.status_code == 400
        assert (answer.json()["error"]["message"], answer.json()["error"]["param"]) == (message, param)


async def test_a_mask_that_is_missing_is_called_as_the_client_calls_it() -> None:
    line = json.dumps({"error": {"status": 400, "message": "mask_image is missing."}}).encode() + b"\n"
    async with talking(line) as (http, _):
        fields = {"prompt": "x", "model": "dall-e-2", "image": "aaaa"}
        answer = await http.post(EDITS, json=fields)
    assert answer.status_code == 400
    assert (answer.json()["error"]["message"], answer.json()["error"]["param"]) == ("mask is missing.", "mask")


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [(507, "out_of_memory", "false"), (504, "deadline_exceeded", "false"), (500, None, "false")],
)
async def test_what_would_fail_again_is_not_tried_again(status: int, code: str | None, again: str) -> None:
    line = json.dumps({"error": {"status": status, "message": "no room"}}).encode() + b"\n"
    async with talking(line) as (http, _):
        answer = await http.post(GENERATIONS, json={"prompt": "x"})
    assert answer.status_code == status and answer.headers["x-should-retry"] == again
    assert answer.json()["error"] == {"message": "no room", "type": "server_error", "param": None, "code": code}


async def test_a_server_that_starts_is_asked_again() -> None:
    async with client(serving(status=404)) as http:  # TorchServe has no such archive
        answer = await http.post(GENERATIONS, json={"prompt": "x"})
    assert (answer.status_code, answer.headers["x-should-retry"], answer.headers["retry-after"]) == (503, "true", "30")


async def test_keys_and_unknown_paths_fail_in_the_same_form() -> None:
    async with client(serving(), api_key="secret") as http:
        answer = await http.post("/images/generations", json={"prompt": "x"})
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        for headers in ({"Authorization": "Bearer secret"}, {"api-key": "secret"}, {"X-API-Key": "secret"}):
            answer = await http.get("/v1/nothing", headers=headers)
            assert answer.status_code == 404 and answer.json()["error"]["message"].startswith("There is no /v1/nothing")
            answer = await http.get(GENERATIONS, headers=headers)
            assert answer.status_code == 405 and "takes OPTIONS or POST, not GET" in answer.json()["error"]["message"]


async def test_a_client_without_a_key_may_send_an_empty_one() -> None:
    async with talking() as (http, _):
        for header in ("Basic ", "Bearer anything"):
            answer = await http.post(GENERATIONS, json={"prompt": "x"}, headers={"Authorization": header})
            assert answer.status_code == 200
        for path in (GENERATIONS, EDITS, "/images/variations"):
            assert (await http.options(path)).status_code == 204
        assert (await http.post("/images/generations?api-version=1", json={"prompt": "x"})).status_code == 200


async def test_models() -> None:
    async with talking() as (http, _):
        listed = (await http.get("/v1/models")).json()
        assert listed == {
            "object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "sd-api-server"}],
        }  # fmt: skip
        assert (await http.get("/v1/models/tiny")).json() == listed["data"][0]
        assert (await http.get("/v1/models/gpt-image-1")).json()["id"] == "gpt-image-1"
        for answer in (
            await http.get("/v1/models/org/none"),
            await http.post(GENERATIONS, json={"prompt": "x", "model": "org/none"}),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert "use tiny" in error["message"]


async def test_a_custom_model_is_a_model(tmp_path: Any) -> None:
    entry = {"model_path": "/a/b", "ui_label": "Mine", "url_path": "mine"}
    (tmp_path / "config.json").write_text(json.dumps({"custom_models": [entry]}))
    paths: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return Described()(request)

    async with client(respond, config=str(tmp_path / "config.json")) as http:
        assert (await http.post(GENERATIONS, json={"prompt": "x", "model": "mine"})).status_code == 200
        assert paths[-1] == "/predictions/custom-mine"
        assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["tiny", "mine"]


async def test_an_image_by_address_needs_no_key() -> None:
    async with talking(api_key="secret") as (http, _):
        headers = {"Authorization": "Bearer secret"}
        answer = await http.post(GENERATIONS, json={"prompt": "x", "response_format": "url"}, headers=headers)
        (image,) = answer.json()["data"]
        assert "b64_json" not in image and image["url"].startswith("http://127.0.0.1/v1/images/files/img_")
        file = await http.get(image["url"])
        assert (file.status_code, file.content, file.headers["content-type"]) == (200, FILE, "image/png")
        assert (await http.get(image["url"] + "x")).status_code == 404


async def test_what_the_safety_checker_flagged() -> None:
    async with talking(result(True, False)) as (http, _):
        answer = await http.post(GENERATIONS, json={"prompt": "x", "n": 2})
        assert [image["nsfw"] for image in answer.json()["data"]] == [True, False]
    async with talking(result(True, True)) as (http, _):
        error = (await http.post(GENERATIONS, json={"prompt": "x"})).json()["error"]
        assert (error["code"], error["type"]) == ("moderation_blocked", "image_generation_user_error")
        assert error["moderation_details"] == {"moderation_stage": "output"}
        answer = await http.post(GENERATIONS, json={"prompt": "x", "model": "dall-e-3"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_policy_violation")


def read_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_base64_goes_to_its_place_whatever_else_is_told() -> None:
    warning = 'It says "b64_json": "" and \\"b64_json": "".'
    async with talking(result(False, False, warnings=(warning,))) as (http, _):
        body = (await http.post(GENERATIONS, json={"prompt": "x", "n": 2})).json()
    assert body["warnings"] == [warning] and [image["b64_json"] for image in body["data"]] == [DATA, DATA]


async def test_partial_images_are_spread_over_the_steps() -> None:
    lines = [Progress(step, 10, f"preview{step}" if step % 2 else None).line() for step in range(1, 11)]
    sent = {"prompt": "x", "n": 2, "stream": True, "partial_images": 2, "size": "64x32", "user": "me"}
    async with talking(*lines, result(False, True)) as (http, _):
        answer = await http.post(GENERATIONS, json=sent, headers={"Accept": "application/json"})
    assert answer.headers["content-type"] == "text/event-stream"
    events = read_events(answer.text)
    assert [name for name, _ in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed",
        "image_generation.completed",
    ]  # fmt: skip
    assert [data["type"] for _, data in events] == [name for name, _ in events]
    partials = [data for name, data in events if "partial" in name]
    assert [(one["b64_json"], one["partial_image_index"]) for one in partials] == [("preview5", 0), ("preview7", 1)]
    assert partials[0]["size"] == "64x32" and partials[0]["output_format"] == "jpeg"
    last = events[-1][1]
    assert (last["b64_json"], last["seed"], last["nsfw"], last["size"]) == (DATA, 8, True, "64x32")
    assert last["warnings"] == ["user has no effect here."] and last["usage"]["total_tokens"] == 0


async def test_a_streams_failure_has_its_status_before_the_first_step_and_is_an_event_after_it() -> None:
    error = b'{"error": {"status": 507, "message": "no room"}}\n'
    sent = {"prompt": "x", "stream": True}
    async with talking(error) as (http, _):
        answer = await http.post(GENERATIONS, json=sent)
        assert answer.status_code == 507 and answer.headers["x-should-retry"] == "false"
    async with talking(Progress(1, 2).line(), error) as (http, _):
        answer = await http.post(GENERATIONS, json=sent)
        assert answer.status_code == 200
        ((name, data),) = read_events(answer.text)
        assert name == "error" and data["error"]["code"] == "out_of_memory"
    async with talking(Progress(1, 2).line(), result(True)) as (http, _):
        ((_, data),) = read_events((await http.post(GENERATIONS, json=sent)).text)
        assert data["error"]["code"] == "moderation_blocked"
