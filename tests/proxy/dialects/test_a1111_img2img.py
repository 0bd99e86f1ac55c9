"""AUTOMATIC1111's img2img: images, masks, and how much is changed."""

import base64
import json
from typing import Any

import httpx
import pytest

from handlers.wire import Result
from tests.support.dialects import DATA, MODEL, result, talking

pytestmark = pytest.mark.anyio

IMG2IMG = "/sdapi/v1/img2img"
PICTURE = f"data:image/png;base64,{DATA}"
MASK = {
    "mask_image": DATA, "mask_mode": "alpha_or_luminance", "mask_blur": "4", "mask_invert": "false",
    "mask_fill": "blur", "mask_padding": "0",
}  # fmt: skip


def warned(answer: httpx.Response) -> str:
    told: dict[str, str] = json.loads(answer.json()["info"])["extra_generation_params"]
    return told.get("Warnings", "")


async def test_an_init_image() -> None:
    async with talking(result(size=(512, 512))) as (http, served):
        sent = {"init_images": [PICTURE], "prompt": "x", "mask_blur": 4, "inpaint_full_res": True, "resize_mode": 1}
        answer = await http.post(IMG2IMG, json=sent)
    ((task, native),) = served.asked
    assert task == "img2img" and answer.status_code == 200 and not warned(answer)
    assert (native["init_image"], native["strength"]) == (PICTURE, "0.75")
    assert native.keys() & {"width", "height", "mask_blur", "mask_padding", "mask_invert"} == set()
    body = answer.json()
    assert body["parameters"]["init_images"] is None and body["parameters"]["mask"] is None
    assert json.loads(body["info"])["denoising_strength"] == 0.75


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({}, {}),
        ({"inpaint_full_res_padding": "32", "inpaint_full_res": 1}, {"mask_padding": "32"}),
        ({"inpaint_full_res": False, "inpaint_full_res_padding": 32}, {"mask_padding": "-1"}),
        ({"inpaint_full_res": "false"}, {"mask_padding": "-1"}),
        ({"mask_blur": 0}, {"mask_blur": "0"}),
        ({"mask_blur_x": 3, "mask_blur_y": 9}, {"mask_blur": "9"}),
        ({"mask_blur": 5, "mask_blur_x": 3}, {"mask_blur": "5"}),
        ({"inpainting_mask_invert": 1}, {"mask_invert": "true"}),
        ({"inpainting_mask_invert": True}, {"mask_invert": "true"}),
        ({"inpainting_fill": 1}, {"mask_fill": "original"}),
        ({"inpainting_fill": "2.0"}, {"mask_fill": "noise"}),
        ({"inpainting_fill": 3}, {"mask_fill": "neutral"}),
    ],
)
async def test_a_mask(sent: dict[str, Any], native: dict[str, str]) -> None:
    async with talking(result(size=(512, 512))) as (http, served):
        answer = await http.post(IMG2IMG, json={"init_images": [DATA], "mask": DATA} | sent)
    assert answer.status_code == 200 and not warned(answer), answer.text
    assert served.asked[0][0] == "masking"
    assert {name: value for name, value in served.native.items() if name.startswith("mask")} == MASK | native


async def test_all_is_replaced_at_full_strength_where_the_fill_has_no_effect() -> None:
    async with talking() as (http, served):
        await http.post(IMG2IMG, json={"init_images": [DATA], "mask": DATA, "denoising_strength": 1})
    assert served.native["strength"] == "1.0" and "mask_fill" not in served.native


@pytest.mark.parametrize(
    ("strength", "steps", "native"),
    [(0.05, 10, "0.100001"), (0, 49, "0.0204092"), (0, 1, "1.0"), (0.3, 10, "0.3"), ("0.5", 2, "0.5")],
)
async def test_at_least_one_step_is_run(strength: Any, steps: int, native: str) -> None:
    async with talking(result(size=(512, 512))) as (http, served):
        answer = await http.post(IMG2IMG, json={"init_images": [DATA], "denoising_strength": strength, "steps": steps})
    assert served.native["strength"] == native and int(float(native) * steps) >= 1
    assert ("leaves none of" in warned(answer)) == (float(strength) * steps < 1)


@pytest.mark.parametrize(
    ("sent", "native"),
    [
        ({}, {}),  # without a size, the image keeps its own
        ({"resize_mode": 1}, {}),
        ({"width": 256, "height": 128.0}, {"fit": "stretch", "width": "256", "height": "128"}),
        ({"width": "256", "resize_mode": "1"}, {"fit": "crop", "width": "256", "height": "512"}),
        ({"height": 256, "resize_mode": 2}, {"fit": "pad", "width": "512", "height": "256"}),
        ({"width": 64, "mask": DATA, "inpaint_full_res": 0}, {"fit": "stretch", "width": "64", "height": "512"}),
    ],
)
async def test_how_an_image_comes_to_its_size(sent: dict[str, Any], native: dict[str, str]) -> None:
    async with talking() as (http, served):
        answer = await http.post(IMG2IMG, json={"init_images": [DATA]} | sent)
    assert answer.status_code == 200 and not warned(answer), answer.text
    assert {name: served.native[name] for name in ("fit", "width", "height") if name in served.native} == native


@pytest.mark.parametrize(
    ("size", "warns"),
    [
        ({}, False), ({"width": 512, "height": 512}, False),  # this API's default
        ({"width": 640, "height": 448}, False),  # the init image's
        ({"width": "768", "height": 768.0}, False),  # the model's own
        ({"width": 256}, True), ({"width": 1024, "height": 1024}, True),
    ],
)  # fmt: skip
async def test_a_size_for_what_is_masked_alone_is_named(
    size: dict[str, Any], warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODEL["defaults"], "width", 768)
    monkeypatch.setitem(MODEL["defaults"], "height", 768)
    monkeypatch.setattr("tests.support.dialects.DESCRIPTION", Result(json.dumps({"models": [MODEL]}).encode()).line())
    async with talking(result(size=(640, 448))) as (http, served):
        answer = await http.post(IMG2IMG, json={"init_images": [DATA], "mask": DATA} | size)
    assert answer.status_code == 200 and not served.native.keys() & {"fit", "width", "height"}
    assert warned(answer).startswith("width and height have no effect with inpaint_full_res") == warns
    assert bool(warned(answer)) == warns


async def test_the_images_are_answered_with_where_that_is_asked() -> None:
    async with talking() as (http, _):
        sent = {"init_images": [DATA], "mask": DATA, "include_init_images": True}
        told = (await http.post(IMG2IMG, json=sent)).json()["parameters"]
    assert told["init_images"] == [DATA] and told["mask"] == DATA


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        ({}, 404, "Init image not found"),
        ({"init_images": []}, 404, "Init image not found"),
        ({"init_images": None}, 404, "Init image not found"),
        ({"init_images": [DATA, DATA]}, 422, "init_images has 2 images for a batch_size of 1"),
        ({"init_images": [DATA, DATA], "batch_size": 2, "n_iter": 5}, 422, "init_images x n_iter must be a whole"),
        ({"init_images": [DATA, DATA], "batch_size": 2, "n_iter": 0}, 422, "from 1 to 8, not 0."),
        ({"init_images": [DATA, 7], "batch_size": 2}, 422, "init_images must be an image"),
        ({"init_images": ["https://example.com/a.png"]}, 422, "init_images cannot be fetched"),
        ({"init_images": [7]}, 422, "init_images must be an image"),
        ({"init_images": [DATA], "mask": [DATA]}, 422, "mask must be an image"),
        ({"init_images": [DATA], "mask": "http://example.com/a.png"}, 422, "mask cannot be fetched"),
        ({"init_images": [DATA], "mask": DATA, "inpainting_fill": 4}, 422, "inpainting_fill must be 0"),
        ({"init_images": [DATA], "mask": DATA, "mask_blur": "much"}, 422, "mask_blur must be a whole number"),
        ({"init_images": [DATA], "width": 64, "resize_mode": 4}, 422, "resize_mode must be 0"),
        ({"init_images": [DATA], "denoising_strength": "x"}, 422, "denoising_strength must be a number"),
    ],
)
async def test_what_is_refused(sent: dict[str, Any], status: int, sentence: str) -> None:
    async with talking() as (http, served):
        answer = await http.post(IMG2IMG, json=sent)
    assert answer.status_code == status and sentence in answer.json()["detail"] and not served.asked


OTHER = base64.b64encode(b"other").decode()


async def ask_batch(**sent: Any) -> tuple[httpx.Response, list[dict[str, Any]]]:
    async with talking(result(size=(512, 512), warnings=("Doubtful.",))) as (http, served):
        answer = await http.post(IMG2IMG, json={"init_images": [DATA, OTHER], "batch_size": 2} | sent)
    assert answer.status_code == 200, answer.text
    return answer, [native for _, native in served.asked]


async def test_each_of_several_init_images_starts_one_of_a_batch() -> None:
    answer, asked = await ask_batch(batch_size=3, n_iter=2, seed=5, mask=DATA)
    told = [(one["init_image"], one["seed"], one["num_outputs"], one["mask_image"]) for one in asked]
    assert told == [(DATA, "5", "1", DATA), (OTHER, "6", "1", DATA), (DATA, "7", "1", DATA), (OTHER, "8", "1", DATA)]
    body = answer.json()
    info = json.loads(body["info"])
    assert body["images"] == [DATA] * 4 and warned(answer) == "Doubtful."
    assert (len(info["all_seeds"]), len(info["infotexts"]), info["index_of_first_image"]) == (4, 4, 0)


async def test_random_seeds_of_a_batch_follow_each_other() -> None:
    (_, first), (_, other) = await ask_batch(), await ask_batch()
    seeds = [int(one["seed"]) for one in (*first, *other)]
    assert seeds[1] == seeds[0] + 1 and seeds[3] == seeds[2] + 1 and seeds[0] != seeds[2] and min(seeds) > 0


async def test_variations_of_a_batch_have_one_seed() -> None:
    _, asked = await ask_batch(seed=5, subseed=9, subseed_strength=0.5)
    assert [(one["seed"], one["variation_seed"]) for one in asked] == [("5", "9"), ("5", "10")]
