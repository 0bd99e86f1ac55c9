"""AUTOMATIC1111's txt2img in front of a played TorchServe: what becomes of a request, and of its answer."""

import json
from typing import Any

import pytest

from handlers.wire import Failed
from tests.support.dialects import DATA, FILE, Described, result, talking
from tests.support.torchserve import client, serving

pytestmark = pytest.mark.anyio

TXT2IMG = "/sdapi/v1/txt2img"
# what a request has natively that says nothing
NATIVE = {
    "prompt": "", "negative_prompt": "", "num_inference_steps": "50", "guidance_scale": "7.0", "scheduler": "Euler",
    "num_outputs": "1", "width": "512", "height": "512", "output_format": "png", "preview": "true",
}  # fmt: skip
INFO = {
    "prompt": str, "all_prompts": list, "negative_prompt": str, "all_negative_prompts": list, "seed": int,
    "all_seeds": list, "subseed": int, "all_subseeds": list, "subseed_strength": float, "width": int, "height": int,
    "sampler_name": str, "cfg_scale": float, "steps": int, "batch_size": int, "restore_faces": bool,
    "face_restoration_model": None, "sd_model_name": str, "sd_model_hash": str, "sd_vae_name": None,
    "sd_vae_hash": None, "seed_resize_from_w": int, "seed_resize_from_h": int, "denoising_strength": None,
    "extra_generation_params": dict, "index_of_first_image": int, "infotexts": list, "styles": list,
    "job_timestamp": str, "clip_skip": int, "is_using_inpainting_conditioning": bool, "version": str,
}  # fmt: skip


async def test_a_prompt_becomes_an_image() -> None:
    async with talking(result(False, False)) as (http, served):
        answer = await http.post(TXT2IMG, json={"prompt": "a red apple", "batch_size": 2, "auth": "SECRET"})
    body = answer.json()
    assert answer.status_code == 200 and "SECRET" not in answer.text
    assert served.asked == [("txt2img", NATIVE | {"prompt": "a red apple", "num_outputs": "2"})]
    assert body.keys() == {"images", "parameters", "info"} and body["images"] == [DATA, DATA]
    told = body["parameters"]
    assert (told["prompt"], told["width"], told["steps"], told["sampler_index"]) == ("a red apple", 512, 50, "Euler")
    info = json.loads(body["info"])
    assert {name: info[name] if kind is None else type(info[name]) for name, kind in INFO.items()} == INFO
    assert info.keys() == INFO.keys()
    assert (info["seed"], info["all_seeds"], info["width"], info["height"]) == (7, [7, 8], 64, 32)
    assert (info["all_prompts"], info["sd_model_name"], info["clip_skip"]) == (["a red apple"] * 2, "tiny", 1)
    assert info["extra_generation_params"] == {"Warnings": "auth has no effect here."}
    assert len(info["infotexts"]) == 2 and len(info["job_timestamp"]) == 14


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({"steps": "25.0", "cfg_scale": "6", "width": 64.0, "height": "128"},
         {"num_inference_steps": "25", "guidance_scale": "6.0", "width": "64", "height": "128"}),
        ({"batch_size": 2, "n_iter": "3"}, {"num_outputs": "6"}),
        ({"seed": "42"}, {"seed": "42"}), ({"seed": 42.0}, {"seed": "42"}), ({"seed": 0}, {"seed": "4294967296"}),
        ({"seed": -1}, {}), ({"seed": None}, {}), ({"seed": ""}, {}), ({"seed": "random"}, {}), ({"seed": -7}, {}),
        ({"sampler_index": "k_euler_a"}, {"scheduler": "k_euler_a"}),
        ({"sampler_name": "Automatic"}, {"scheduler": "Euler"}),
        ({"sampler_name": "DPM++ 2M Karras", "sampler_index": "Euler"}, {"scheduler": "DPM++ 2M Karras"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "automatic"}, {"scheduler": "DPM++ 2M"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "sgm_uniform"}, {"scheduler": "DPM++ 2M sgm_uniform"}),
        ({"sampler_name": "DPM++ 2M SGM Uniform", "scheduler": "Karras"}, {"scheduler": "dpm++2m Karras"}),
        ({"sampler_name": "DPM++ 2M", "scheduler": "discrete"}, {"scheduler": "DPM++ 2M discrete"}),
        ({"clip_skip": 2}, {"clip_skip": "1"}), ({"clip_skip": 1}, {}), ({"clip_skip": 0}, {}),
        ({"clip_skip": 3, "override_settings": {"CLIP_stop_at_last_layers": 2}}, {"clip_skip": "1"}),
        ({"override_settings": {"samples_format": "jpg", "sd_model_checkpoint": "tiny.safetensors [abc1234567]"}},
         {"output_format": "jpeg"}),
        ({"override_settings": {"sd_model_checkpoint": "None", "sd_vae": "Automatic"}, "styles": []}, {}),
        ({"eta": 0.5, "negative_prompt": "blue"}, {"eta": "0.5", "negative_prompt": "blue"}),
        ({"eta": 1.0}, {}),  # as webuiapi always sends it
        ({"eta": 1.0, "sampler_name": "DDIM"}, {"eta": "1.0", "scheduler": "DDIM"}),
        ({"alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [False, {}]}, "x": {}}}, {}),
        ({"alwayson_scripts": {"controlnet": {"args": [{"enabled": False, "image": DATA}]}}}, {}),
        ({"script_name": "None", "script_args": [1], "hr_scale": "1.0", "hr_upscaler": "ESRGAN_4x",
          "enable_hr": False, "denoising_strength": 0}, {}),
        ({"subseed": -1, "subseed_strength": 0.0, "s_noise": 1, "s_tmax": 0, "restore_faces": "false"}, {}),
    ],
)  # fmt: skip
async def test_what_has_a_native_field(sent: dict[str, Any], native: dict[str, str]) -> None:
    async with talking() as (http, served):
        answer = await http.post(TXT2IMG, json=sent)
    assert answer.status_code == 200 and "Warnings" not in answer.text, answer.text
    assert served.native == NATIVE | native


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        ({"enable_hr": True, "hr_checkpoint_name": "other"}, "hr_checkpoint_name is not possible"),
        ({"subseed_strength": "much"}, "subseed_strength must be a number"),
        ({"script_name": "X/Y/Z plot"}, "Script 'X/Y/Z plot' not found"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "'ADetailer' is not possible here"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "'ADetailer' is not possible here"),
        ({"alwayson_scripts": ["ControlNet"]}, "alwayson_scripts must be an object"),
        ({"controlnet_units": [{"model": "edges", "module": "canny"}]}, "the preprocessor 'canny' is not here"),
        ({"override_settings": {"sd_model_checkpoint": "other"}}, "sd_model_checkpoint 'other' is not one of"),
        ({"override_settings": {"samples_format": "avif"}}, "samples_format must be one of png"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "x"}}, "must be a whole number"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 13}}, "must be a whole number from 1 to 12"),
        ({"override_settings": 1}, "override_settings must be an object"),
        ({"model": "other"}, "sd_model_checkpoint 'other' is not one of"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"scheduler": "karas"}, "scheduler must be one of Automatic, Uniform, Karras, Exponential, SGM Uniform, "),
        ({"enable_hr": True, "hr_scheduler": "x"}, "hr_scheduler must be one of Automatic"),
        ({"cfg_scale": "nan"}, "cfg_scale must be a number"),
        ({"width": "512px"}, "width must be a whole number"),
        ({"prompt": ["x"]}, "prompt must be text"),
        ({"force_task_id": "x" * 129}, "force_task_id must have at most 128"),
    ],
)
async def test_what_is_refused_before_anything_is_generated(sent: Any, sentence: str) -> None:
    async with talking() as (http, served):
        answer = await http.post(TXT2IMG, json=sent)
    body = answer.json()
    assert answer.status_code == 422 and sentence in body["detail"] and not served.asked
    assert body == {"error": "HTTPException", "detail": body["detail"], "body": "", "errors": body["detail"]}


@pytest.mark.parametrize("schedule", ["kl_optimal", "KL Optimal", "polyexponential", "align_your_steps_GITS", "ddim"])
async def test_a_schedule_that_is_not_in_diffusers_is_the_samplers_own(schedule: str) -> None:
    sent = {"sampler_name": "DPM++ 2M", "scheduler": schedule, "enable_hr": True, "hr_scheduler": schedule}
    async with talking() as (http, served):
        answer = await http.post(TXT2IMG, json=sent)
    assert served.native["scheduler"] == "DPM++ 2M" and "hires_scheduler" not in served.native
    told = json.loads(answer.json()["info"])["extra_generation_params"]["Warnings"]
    sentence = f"scheduler: diffusers has no {schedule} schedule, so it has no effect."
    assert told == f"{sentence} hr_{sentence}"


async def test_numbers_that_json_does_not_have_count_as_null() -> None:
    sent = b'{"s_tmax": Infinity, "s_churn": NaN, "s_noise": -Infinity, "cfg_scale": 1e999, "steps": 5e0}'
    async with talking() as (http, served):
        answer = await http.post(TXT2IMG, content=sent, headers={"Content-Type": "application/json"})
    assert (served.native["guidance_scale"], served.native["num_inference_steps"]) == ("7.0", "5")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    body = json.loads(answer.text, parse_constant=refuse)
    assert (body["parameters"]["s_tmax"], body["parameters"]["cfg_scale"]) == (None, 7.0)
    assert json.loads(body["info"])["extra_generation_params"] == {}


async def test_what_has_no_effect_is_named() -> None:
    sent = {
        "restore_faces": True, "tiling": True, "styles": ["ink"], "seed_resize_from_w": 64,
        "infotext": "a cat", "override_settings": {"sd_vae": "other.pt", "img2img_color_correction": True},
    }  # fmt: skip
    async with talking(result(warnings=("strength is odd: see num_inference_steps.",))) as (http, _):
        answer = await http.post(TXT2IMG, json=sent)
    told = json.loads(answer.json()["info"])["extra_generation_params"]["Warnings"]
    assert told == (
        "override_settings.sd_vae, override_settings.img2img_color_correction have no effect here. "
        "styles: 'ink' not found in the server's styles.csv. "
        "restore_faces, tiling, seed_resize_from_w, infotext have no effect here. "
        "strength is odd: see steps."
    )


@pytest.mark.parametrize(
    ("status", "sentence", "told"),
    [
        (400, "num_outputs must be a whole number from 1 to 8, not 9.", "batch_size x n_iter must be a whole number"),
        (400, "scheduler must be the model's own", "sampler_index must be the model's own"),
        (400, "guidance_scale must be a number", "cfg_scale must be a number"),
        (507, "There is no memory for 2 images: lower num_outputs.", "There is no memory for 2 images: lower batch_"),
    ],
)
async def test_a_native_failure_in_the_clients_words(status: int, sentence: str, told: str) -> None:
    line = json.dumps({"error": {"status": status, "message": sentence}}).encode() + b"\n"
    async with talking(line) as (http, _):
        answer = await http.post(TXT2IMG, json={"sampler_index": "x"})
    assert answer.status_code == (422 if status == 400 else status)
    assert answer.json()["detail"].startswith(told)


@pytest.mark.parametrize("body", [b"", b"prompt=x", b"[1]", b"{", b'{"a": 1, "a": 2}', b"{" * 9])
async def test_a_body_that_is_none(body: bytes) -> None:
    async with talking() as (http, _):
        answer = await http.post(TXT2IMG, content=body)
    assert answer.status_code == 422 and answer.json()["detail"]


async def test_keys_come_as_passwords() -> None:
    async with client(Described(), api_key="secret") as http:
        answer = await http.post(TXT2IMG, json={})
        assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
        assert answer.json()["detail"].startswith("This server requires an API key")
        assert (await http.post(TXT2IMG, json={}, auth=("anybody", "wrong"))).status_code == 401
        for options in ({"auth": ("anybody", "secret")}, {"headers": {"Authorization": "Bearer secret"}}):
            assert (await http.post(TXT2IMG, json={}, **options)).status_code == 200  # type: ignore[arg-type]
        for header in ("Basic ", "Basic", "Basic ###", "Basic eA=="):
            answer = await http.post(TXT2IMG, json={}, headers={"Authorization": header})
            assert answer.status_code == 401 and answer.json()["detail"].startswith("This server requires")
    async with client(Described()) as http:
        answer = await http.post("/sdapi//v1/txt2img/?", json={}, headers={"Authorization": "Basic "})
        assert answer.status_code == 200


async def test_other_addresses_fail_in_the_same_form() -> None:
    async with client(serving()) as http:
        for path in ("/sdapi/v1/interrogate", "/sdapi/v1/none", "/sdapi/none", "/controlnet/version", "/internal/x"):
            answer = await http.get(path)
            assert answer.status_code == 404 and answer.json()["detail"].startswith("There is no ")
        answer = await http.post("/sdapi/v1/interrogate", json={})
        assert answer.status_code == 404 and "/sdapi/v1/interrogate" in answer.json()["detail"]
        answer = await http.get(TXT2IMG)
        assert answer.status_code == 405 and answer.json()["detail"] == f"{TXT2IMG} takes POST, not GET."


async def test_a_request_can_be_a_job() -> None:
    async with talking(result(warnings=("Doubtful.",))) as (http, _):
        sent = {"prompt": "x", "tiling": True}
        job = (await http.post(TXT2IMG, json=sent, headers={"Prefer": "respond-async"})).json()
        job = (await http.get(f"/v1/jobs/{job['id']}?wait=20")).json()
        assert job["status"] == "completed" and job["warnings"] == ["tiling has no effect here.", "Doubtful."]
        assert (await http.get(job["images"][0]["url"])).content == FILE


async def test_a_model_with_few_layers_refuses_the_number_that_diffusers_counts() -> None:
    line = Failed(400, "clip_skip must be a whole number from 0 to 3 for this model, not 4.").line()
    async with talking(line) as (http, _):
        answer = await http.post(TXT2IMG, json={"clip_skip": 5})
    assert "CLIP_stop_at_last_layers - 1 must be a whole number from 0 to 3" in answer.text
