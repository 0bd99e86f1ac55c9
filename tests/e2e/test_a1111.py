"""AUTOMATIC1111's API on the real server, and the same images by all dialects."""

import base64
import io
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.a1111_bodies import bodies
from tests.support.running import HANG_S, Running, wait_for
from tests.support.samples import b64, half_mask, sample_image

pytestmark = pytest.mark.e2e

IMAGE, MASK = b64(sample_image()), b64(half_mask())
# the fields of a request in the words of each dialect, from which all of them make the same one
NATIVE = {
    "prompt": "a red apple", "negative_prompt": "blurred", "seed": 3, "num_inference_steps": 4, "guidance_scale": 6,
    "num_outputs": 2, "scheduler": "Euler a",
}  # fmt: skip
OPENAI = {
    "prompt": "a red apple", "negative_prompt": "blurred", "seed": 3, "steps": 4, "cfg_scale": 6, "n": 2,
    "sampler": "Euler a",
}  # fmt: skip
A1111 = {
    "prompt": "a red apple", "negative_prompt": "blurred", "seed": 3, "steps": 4, "cfg_scale": 6, "batch_size": 2,
    "sampler_name": "Euler a",
}  # fmt: skip


def ask(instance: Running, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{instance.url}{path}", json=fields, timeout=HANG_S)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("paths", "native", "openai", "a1111"),
    [
        (
            ("txt2img", "generations", "txt2img"),
            {"width": 64, "height": 96}, {"size": "64x96"}, {"width": 64, "height": 96},
        ),
        (
            ("img2img", "edits", "img2img"),
            {"init_image": IMAGE, "strength": 0.75}, {"image": IMAGE, "strength": 0.75}, {"init_images": [IMAGE]},
        ),
        (
            ("masking", "edits", "img2img"),
            {"init_image": IMAGE, "mask_image": MASK, "strength": 0.5, "mask_blur": 4, "mask_fill": "blur",
             "mask_padding": 0},
            {"image": IMAGE, "mask_image": MASK, "strength": 0.5, "mask_blur": 4, "mask_fill": "blur",
             "mask_padding": 0},
            {"init_images": [IMAGE], "mask": MASK, "denoising_strength": 0.5},
        ),
    ],
    ids=["txt2img", "img2img", "masking"],
)  # fmt: skip
def test_all_dialects_generate_the_same_images(
    combined: Running, paths: tuple[str, str, str], native: Any, openai: Any, a1111: Any
) -> None:
    natives = combined.images(paths[0], **NATIVE | native)
    others = ask(combined, f"/v1/images/{paths[1]}", OPENAI | openai)["data"]
    answer = ask(combined, f"/sdapi/v1/{paths[2]}", A1111 | a1111)
    expected = [pixels(image["base64"]) for image in natives]
    assert [image["seed"] for image in natives] == json.loads(answer["info"])["all_seeds"] == [3, 4]
    for i, image in enumerate(expected):
        assert np.array_equal(pixels(others[i]["b64_json"]), image)
        assert np.array_equal(pixels(answer["images"][i]), image)
    assert not np.array_equal(*expected)


@pytest.mark.parametrize(
    ("task", "native", "a1111"),
    [
        (
            "txt2img",
            {"width": 64, "height": 64, "hires_upscaler": "Latent", "hires_width": 128, "hires_height": 128,
             "hires_strength": 0.75},
            {"width": 64, "height": 64, "enable_hr": True},
        ),
        (
            "txt2img",
            {"width": 64, "height": 64, "hires_upscaler": "Lanczos", "hires_width": 96, "hires_height": 64,
             "hires_strength": 0.5, "hires_steps": 2, "hires_scheduler": "DDIM"},
            {"width": 64, "height": 64, "enable_hr": True, "hr_upscaler": "Lanczos", "hr_resize_x": 96,
             "hr_resize_y": 64, "denoising_strength": 0.5, "hr_second_pass_steps": 2, "hr_sampler_name": "DDIM"},
        ),
        (
            "img2img",
            {"init_image": IMAGE, "strength": 0.75, "fit": "crop", "width": 96, "height": 64},
            {"init_images": [IMAGE], "resize_mode": 1, "width": 96, "height": 64},
        ),
        (
            "txt2img",
            {"width": 64, "height": 64, "variation_seed": 9, "variation_strength": 0.5},
            {"width": 64, "height": 64, "subseed": 9, "subseed_strength": 0.5},
        ),
    ],
    ids=["latents", "pixels", "fit", "variation"],
)  # fmt: skip
def test_what_the_web_ui_does_to_sizes_and_seeds(combined: Running, task: str, native: Any, a1111: Any) -> None:
    natives = combined.images(task, **NATIVE | native)
    answer = ask(combined, f"/sdapi/v1/{task}", A1111 | a1111)
    assert not json.loads(answer["info"])["extra_generation_params"]
    for text, image in zip(answer["images"], natives, strict=True):
        assert np.array_equal(pixels(text), pixels(image["base64"]))


def test_each_of_several_init_images_starts_one_image(combined: Running) -> None:
    images = [IMAGE, b64(sample_image().rotate(180))]
    answer = ask(combined, "/sdapi/v1/img2img", A1111 | {"init_images": images, "n_iter": 2, "denoising_strength": 0.5})
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [3, 4, 5, 6] and info["index_of_first_image"] == 0 and len(answer["images"]) == 4
    for i, text in enumerate(answer["images"]):
        native = NATIVE | {"seed": 3 + i, "num_outputs": 1, "init_image": images[i % 2], "strength": 0.5}
        (alone,) = combined.images("img2img", **native)
        assert np.array_equal(pixels(text), pixels(alone["base64"]))
        told = ask(combined, "/sdapi/v1/png-info", {"image": text})
        assert told["info"] == info["infotexts"][i] and told["parameters"]["Seed"] == str(3 + i)


def test_an_image_is_enlarged(combined: Running) -> None:
    sent = {"image": IMAGE, "upscaling_resize": 1.5, "upscaler_1": "Nearest"}
    answer = ask(combined, "/sdapi/v1/extra-single-image", sent)
    width, height = sample_image().size
    assert pixels(answer["image"]).shape == (height * 3 // 2, width * 3 // 2, 3) and not answer["html_info"]


def test_images_are_enlarged_together(combined: Running) -> None:
    alone = ask(combined, "/sdapi/v1/extra-single-image", {"image": IMAGE, "upscaling_resize": 2})["image"]
    sent = {"imageList": [{"data": IMAGE, "name": "one"}] * 2, "upscaling_resize": 2}
    assert ask(combined, "/sdapi/v1/extra-batch-images", sent) == {"html_info": "", "images": [alone, alone]}


def test_auto_photoshop_grows_its_masks(combined: Running) -> None:
    mask = Image.new("RGB", (64, 48))
    mask.paste("white", (30, 20, 34, 24))
    sent = {"mask": b64(mask), "mask_expansion": 3, "blur": 0}
    grown = pixels(ask(combined, "/sdapi/auto-photoshop-sd/mask/expansion/", sent)["mask"])
    assert (grown[17:27, 27:37] == 255).all() and grown.sum() == 10 * 10 * 3 * 255


def test_the_visible_part_of_a_mask_is_replaced(combined: Running) -> None:
    mask = Image.new("RGBA", (64, 64))
    mask.paste((0, 0, 0, 255), (0, 0, 32, 64))
    for fields, is_left in (({}, True), ({"inpainting_mask_invert": 1}, False)):
        sent = {"init_images": [IMAGE], "mask": b64(mask), "mask_blur": 0, "denoising_strength": 1, "steps": 2}
        (image,) = ask(combined, "/sdapi/v1/img2img", sent | fields)["images"]
        changed = (pixels(image) != np.asarray(sample_image())).any(axis=-1)
        kept, replaced = (changed[:, 32:], changed[:, :32]) if is_left else (changed[:, :32], changed[:, 32:])
        assert not kept.any() and replaced.mean() > 0.9


@pytest.mark.parametrize("format", ["png", "jpg", "webp"])
def test_the_parameters_are_read_back(combined: Running, format: str) -> None:
    sent = {"prompt": "a red apple, <lora:none:1>", "negative_prompt": "blurred", "seed": 0, "steps": 2, "width": 64,
            "height": 96, "sampler_index": "Euler a", "override_settings": {"samples_format": format}}  # fmt: skip
    answer = ask(combined, "/sdapi/v1/txt2img", sent)
    info = json.loads(answer["info"])
    told = ask(combined, "/sdapi/v1/png-info", {"image": answer["images"][0]})
    assert info["infotexts"] == [told["info"]]
    values = told["parameters"]
    assert (values["Steps"], values["Sampler"], values["Size-1"], values["Size-2"]) == ("2", "Euler a", "64", "96")
    assert (values["Negative prompt"], values["Seed"]) == ("blurred", str(info["seed"]))
    assert info["sampler_name"] == "Euler a" and "none" in info["extra_generation_params"]["Warnings"]
    # of a seed of 0, the same image comes each time
    assert ask(combined, "/sdapi/v1/txt2img", sent)["images"] == answer["images"]


def test_progress_and_interruption(combined: Running) -> None:
    answers: list[dict[str, Any]] = []
    sent = {"prompt": "a house", "steps": 250, "batch_size": 4, "width": 512, "height": 512, "force_task_id": "mine"}
    thread = threading.Thread(target=lambda: answers.append(ask(combined, "/sdapi/v1/txt2img", sent)))
    thread.start()

    def progress() -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"{combined.url}/sdapi/v1/progress", timeout=HANG_S).json()
        return told

    wait_for(lambda: progress()["current_image"])
    told = progress()
    assert 0 < told["progress"] < 1 and told["state"]["job_count"] == 1 and told["state"]["sampling_step"] > 0
    assert ask(combined, "/internal/progress", {"id_task": "mine"})["active"]
    assert ask(combined, "/sdapi/v1/interrupt", {}) == {}
    thread.join(HANG_S)
    (answer,) = answers
    assert answer["images"] == [] and progress()["progress"] == 0
    assert ask(combined, "/internal/progress", {"id_task": "mine"})["completed"]


@pytest.mark.parametrize("program", bodies(IMAGE, MASK))
def test_programs_get_their_images(combined: Running, program: str) -> None:
    route, body = bodies(IMAGE, MASK)[program]
    answer = ask(combined, f"/sdapi/v1/{route}", body)
    assert len(answer["images"]) == body.get("batch_size", 1)
    assert all(pixels(image).shape == (64, 64, 3) for image in answer["images"])


def test_the_model_and_its_samplers(combined: Running) -> None:
    def get(name: str) -> Any:
        return httpx.get(f"{combined.url}/sdapi/v1/{name}", timeout=HANG_S).json()

    options = get("options")
    assert options["sd_model_checkpoint"] in [model["title"] for model in get("sd-models")]
    assert httpx.post(f"{combined.url}/sdapi/v1/options", json=options, timeout=HANG_S).json() is None
    names = [sampler["name"] for sampler in get("samplers")]
    assert {"Euler", "Euler a", "DPM++ 2M"} <= set(names)
    for sampler in get("samplers")[:3]:
        sent = {"prompt": "x", "steps": 2, "width": 64, "height": 64, "sampler_name": sampler["aliases"][0]}
        info = json.loads(ask(combined, "/sdapi/v1/txt2img", sent)["info"])
        assert info["sampler_name"] == sampler["name"]
