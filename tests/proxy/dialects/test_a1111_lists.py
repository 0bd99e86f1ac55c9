"""What AUTOMATIC1111's clients ask for at their start, and the options that they set."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from handlers.imaging.output import SideData, encode
from handlers.request import samplers
from proxy.dialects import a1111_fields
from tests.support.dialects import DATA, Described, result, talking
from tests.support.torchserve import client

pytestmark = pytest.mark.anyio

EMPTY = ("sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "extensions",
         "script-info")  # fmt: skip
OPTIONS = {
    "sd_model_checkpoint": "tiny", "CLIP_stop_at_last_layers": 1, "samples_format": "png", "sd_checkpoint_hash": "",
    "sd_vae": "Automatic",
}  # fmt: skip


async def get(http: httpx.AsyncClient, name: str) -> Any:
    answer = await http.get(f"/sdapi/v1/{name}")
    assert answer.status_code == 200
    return answer.json()


async def test_lists() -> None:
    async with talking() as (http, _):
        assert [await get(http, name) for name in EMPTY] == [[]] * len(EMPTY)
        assert await get(http, "scripts") == {"txt2img": [], "img2img": []}
        assert await get(http, "sd-models") == [
            {"title": "tiny", "model_name": "tiny", "hash": None, "sha256": None, "filename": "tiny", "config": None}
        ]
        assert await get(http, "samplers") == [
            {"name": "Euler a", "aliases": ["k_euler_a"], "options": {}},
            {"name": "DPM++ 2M", "aliases": ["k_dpmpp_2m"], "options": {}},
        ]
        assert {one["label"] for one in await get(http, "schedulers")} >= {"Automatic", "Karras", "SGM Uniform"}
        assert [one["name"] for one in await get(http, "upscalers")] == [
            "None", "Lanczos", "Nearest", "photo_x4",
        ]  # fmt: skip
        assert (await get(http, "latent-upscale-modes"))[0] == {"name": "Latent"}
        assert await get(http, "loras") == [{"name": "ink", "alias": "ink", "path": "ink", "metadata": {}}]
        assert (await get(http, "embeddings"))["loaded"].keys() == {"bad"}
        ram = (await get(http, "memory"))["ram"]
        assert ram["total"] == ram["free"] + ram["used"] > 0
        assert (await get(http, "cmd-flags"))["api"] is True
        assert (await http.get("/sdapi/auto-photoshop-sd/heartbeat")).json() == {"heartbeat": True}


async def test_a_mask_is_grown() -> None:
    path = "/sdapi/auto-photoshop-sd/mask/expansion/"
    async with talking() as (http, served):
        answer = await http.post(path, json={"mask": DATA, "mask_expansion": "4", "blur": 2.0})
        assert answer.json() == {"mask": DATA}
        fields = {"mask_image": DATA, "mask_mode": "alpha_or_luminance", "mask_grow": "4", "mask_blur": "2"}
        assert served.asked == [("mask", fields)]
        answer = await http.post(path, json={"mask_expansion": 4})
        assert answer.status_code == 422 and answer.json()["detail"].startswith("mask is missing")


async def test_images_are_enlarged_one_after_the_other() -> None:
    path = "/sdapi/v1/extra-batch-images"
    async with talking(result(warnings=("Doubtful.",))) as (http, served):
        sent = {"imageList": [{"data": DATA, "name": "a.png"}, {"data": f"data:image/png;base64,{DATA}", "name": "b"}]}
        answer = (await http.post(path, json=sent | {"upscaling_resize": 3, "upscaler_1": "Nearest"})).json()
        assert answer == {"html_info": "Doubtful.", "images": [DATA, DATA]}
        common = {"scale": "3.0", "upscaler": "Nearest"}
        assert served.asked == [("upscale", common | {"init_image": one["data"]}) for one in sent["imageList"]]
        for wrong in ({}, {"imageList": [DATA]}, {"imageList": [{"name": "a"}]}, {"imageList": [{"data": "x"}] * 101}):
            answer = await http.post(path, json=wrong)
            assert answer.status_code == 422 and answer.json()["detail"].startswith("imageList ")


def test_every_schedule_is_one_of_the_servers() -> None:
    known = {samplers._key(name) for name in (*samplers.SCHEDULES, samplers.AUTOMATIC)}
    for name, label in a1111_fields.SCHEDULES.items():
        assert samplers._key(name) == samplers._key(label) and samplers._key(label) in known
    assert known >= {*map(samplers._key, a1111_fields.OTHER_SCHEDULES)}
    assert not known & {*map(samplers._key, a1111_fields.ABSENT_SCHEDULES)}


async def test_what_the_server_does_itself() -> None:
    async with talking() as (http, _):
        for name in ("refresh-checkpoints", "refresh-vae", "refresh-loras", "unload-checkpoint", "reload-checkpoint"):
            answer = await http.post(f"/sdapi/v1/{name}", json="")
            assert answer.status_code == 200 and answer.json() is None


async def test_options() -> None:
    async with talking() as (http, served):
        assert await get(http, "options") == OPTIONS
        # as a whole, with what is not known here
        answer = await http.post("/sdapi/v1/options", json=OPTIONS | {"inpainting_mask_weight": 1.0})
        assert answer.status_code == 200 and answer.json() is None and await get(http, "options") == OPTIONS
        changes = {"CLIP_stop_at_last_layers": "2", "samples_format": "jpg"}
        assert (await http.post("/sdapi/v1/options", json=changes)).json() is None
        assert await get(http, "options") == OPTIONS | {"CLIP_stop_at_last_layers": 2, "samples_format": "jpg"}
        await http.post("/sdapi/v1/txt2img", json={})
        assert (served.native["clip_skip"], served.native["output_format"]) == ("1", "jpeg")
        await http.post("/sdapi/v1/txt2img", json={"override_settings": {"CLIP_stop_at_last_layers": 1}})
        assert "clip_skip" not in served.native
        before = await get(http, "options")
        for wrong in ({"sd_model_checkpoint": "other"}, {"samples_format": "gif"}, {"CLIP_stop_at_last_layers": "x"}):
            answer = await http.post("/sdapi/v1/options", json=wrong)
            assert answer.status_code == 422 and answer.json()["detail"].startswith(next(iter(wrong)))
            assert await get(http, "options") == before


async def test_a_caller_sets_its_own_options(tmp_path: Path) -> None:
    entry = {"model_path": "/a/b", "ui_label": "Mine", "url_path": "mine"}
    (tmp_path / "config.json").write_text(json.dumps({"custom_models": [entry]}))
    paths: list[str] = []
    served = Described()

    def respond(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return served(request)

    async with client(respond, config=str(tmp_path / "config.json"), api_key="own,foreign") as http:
        for key, chosen in (("own", "mine"), ("foreign", "tiny")):
            headers = {"Authorization": f"Bearer {key}"}
            if key == "own":
                sent = {"sd_model_checkpoint": "Mine"}
                assert (await http.post("/sdapi/v1/options", json=sent, headers=headers)).status_code == 200
            told = (await http.get("/sdapi/v1/options", headers=headers)).json()["sd_model_checkpoint"]
            assert told.lower() == chosen
            answer = await http.post("/sdapi/v1/txt2img", json={}, headers=headers)
            assert json.loads(answer.json()["info"])["sd_model_name"].lower() == chosen
            assert paths[-1] == f"/predictions/{'custom-mine' if key == 'own' else 'txt2img'}"
            # the model of one request alone
            sent = {"override_settings": {"sd_model_checkpoint": "mine.safetensors"}}
            await http.post("/sdapi/v1/txt2img", json=sent, headers=headers)
            assert paths[-1] == "/predictions/custom-mine"


async def test_png_info() -> None:
    text = "a cat\nSteps: 20, Sampler: Euler a, Seed: 3, Size: 64x32, Version: x"
    file = encode(Image.new("RGB", (8, 8)), "png", 90, SideData(parameters=text))[0]
    async with talking() as (http, _):
        for image in (file, f"data:image/png;base64,{file}"):
            told = (await http.post("/sdapi/v1/png-info", json={"image": image})).json()
            assert told["info"] == text and told["items"] == {"parameters": text}
            assert (told["parameters"]["Seed"], told["parameters"]["Size-2"]) == ("3", "32")
        for image in ("", base64.b64encode(b"\xff\xd8").decode()):
            told = (await http.post("/sdapi/v1/png-info", json={"image": image})).json()
            assert told == {"info": "", "items": {}, "parameters": {}}
        for image, sentence in (
            ("QUJD", "image must be a PNG, JPEG or WebP"),
            (["QUJD"], "image must be an image"),
            ("A", "image is not valid base64"),
        ):
            answer = await http.post("/sdapi/v1/png-info", json={"image": image})
            assert answer.status_code == 422 and sentence in answer.json()["detail"]
