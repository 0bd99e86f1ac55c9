"""AUTOMATIC1111's second pass, variations and enlarged images in front of a played TorchServe."""

import json
from typing import Any

import pytest

from handlers.wire import Result, image_entry
from tests.support.dialects import DATA, talking

pytestmark = pytest.mark.anyio

TXT2IMG, EXTRA = "/sdapi/v1/txt2img", "/sdapi/v1/extra-single-image"
HIRES = {
    "hires_width": "1024", "hires_height": "512", "hires_upscaler": "Latent", "hires_steps": "20",
    "hires_strength": "0.75",
}  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({}, {}),
        (
            {"hr_scale": "1.5", "hr_upscaler": "Lanczos"},
            {"hires_width": "768", "hires_height": "384", "hires_upscaler": "Lanczos"},
        ),
        ({"hr_resize_x": 640}, {"hires_width": "640", "hires_height": "320"}),
        ({"hr_resize_y": 300}, {"hires_width": "600", "hires_height": "296"}),  # multiples of 8
        ({"hr_resize_x": 640, "hr_resize_y": 640}, {"hires_width": "640", "hires_height": "640"}),
        (
            {"firstphase_width": 256, "firstphase_height": 128},
            {"width": "256", "height": "128", "hires_width": "512", "hires_height": "256"},
        ),
        ({"firstphase_width": 256}, {"width": "256", "height": "128", "hires_width": "512", "hires_height": "256"}),
        ({"hr_second_pass_steps": 8, "denoising_strength": 0.5}, {"hires_steps": "8", "hires_strength": "0.5"}),
        (
            {"hr_prompt": "a hut", "hr_negative_prompt": "dull"},
            {"hires_prompt": "a hut", "hires_negative_prompt": "dull"},
        ),
        ({"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}, {}),
        ({"hr_sampler_name": "DDIM"}, {"hires_scheduler": "DDIM"}),
        ({"hr_scheduler": "karras"}, {"hires_scheduler": "Euler karras"}),
        ({"scheduler": "exponential", "hr_sampler_name": "DPM++ 2M"}, {"hires_scheduler": "DPM++ 2M exponential"}),
        ({"hr_scale": 1e308}, {"hires_width": "512000", "hires_height": "256000"}),  # which the worker refuses by name
        ({"hr_scale": -1e308}, {"hires_width": "0", "hires_height": "0"}),
        ({"hr_cfg": 5}, {"hires_guidance_scale": "5.0"}),
        ({"hr_checkpoint_name": "Use same checkpoint", "hr_additional_modules": ["Use same choices"]}, {}),
    ],
)
async def test_a_second_pass(sent: dict[str, Any], native: dict[str, str]) -> None:
    size = {"width": 512, "height": 256, "steps": 20}
    async with talking() as (http, served):
        answer = await http.post(TXT2IMG, json={"enable_hr": True, **size} | sent)
    assert answer.status_code == 200 and not json.loads(answer.json()["info"])["extra_generation_params"], answer.text
    told = {name: value for name, value in served.native.items() if name.startswith(("hires", "width", "height"))}
    assert told == {"width": "512", "height": "256"} | HIRES | native


async def test_a_variation() -> None:
    image = image_entry(DATA, 7, False, (64, 32), variation_seed=9)
    async with talking(Result.of_images([image], ()).line()) as (http, served):
        answer = await http.post(TXT2IMG, json={"seed": 7, "subseed": "9", "subseed_strength": 0.25})
    assert (served.native["variation_seed"], served.native["variation_strength"]) == ("9", "0.25")
    info = json.loads(answer.json()["info"])
    assert (info["subseed"], info["all_subseeds"], info["subseed_strength"]) == (9, [9], 0.25)


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({}, {"scale": "2.0"}),
        (
            {"upscaling_resize": 3, "upscaler_1": "Lanczos", "upscaler_2": "None"},
            {"scale": "3.0", "upscaler": "Lanczos"},
        ),
        ({"resize_mode": 1, "upscaling_resize_w": 640, "upscaling_resize_h": "480"}, {"width": "640", "height": "480"}),
    ],
)
async def test_an_image_is_enlarged(sent: dict[str, Any], native: dict[str, str]) -> None:
    async with talking() as (http, served):
        answer = await http.post(EXTRA, json={"image": DATA, "gfpgan_visibility": 0} | sent)
    assert answer.json() == {"html_info": "", "image": DATA}
    task, asked = served.asked[0]
    assert task == "upscale" and {name: asked[name] for name in asked if name != "init_image"} == native


async def test_a_size_is_always_filled() -> None:
    async with talking() as (http, _):
        sent = {"image": DATA, "resize_mode": 1, "upscaling_crop": False}
        assert (await http.post(EXTRA, json=sent)).json()["html_info"] == "upscaling_crop has no effect here."
        answer = await http.post(EXTRA, json={"image": DATA, "resize_mode": 7})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("resize_mode must be 0")


async def test_what_an_enlarged_image_does_not_get_is_said() -> None:
    async with talking() as (http, _):
        answer = await http.post(EXTRA, json={"image": DATA, "codeformer_visibility": 0.5})
        assert answer.json()["html_info"] == "codeformer_visibility has no effect here."
        answer = await http.post(EXTRA, json={})
    assert (answer.status_code, answer.json()["detail"]) == (422, "image is missing: send it as base64.")
