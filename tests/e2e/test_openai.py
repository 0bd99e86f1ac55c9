"""OpenAI's Images API on the real server, as its libraries send it."""

import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.support.running import HANG_S, Running
from tests.support.samples import file_bytes, sample_image

pytestmark = pytest.mark.e2e


def post(instance: Running, path: str, **options: object) -> httpx.Response:
    return httpx.post(f"{instance.url}/v1/images/{path}", timeout=HANG_S, **options)  # type: ignore[arg-type]


def pixels(b64: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")).astype(int)


def test_a_generation_is_the_native_one(combined: Running) -> None:
    sent = {"model": "gpt-image-1", "prompt": "a red apple", "seed": 3, "steps": 2, "n": 2, "size": "64x96"}
    answer = post(combined, "generations", json=sent).json()
    native = combined.images("txt2img", seed=3, num_inference_steps=2, num_outputs=2, width=64, height=96)
    assert [image["b64_json"] for image in answer["data"]] == [image["base64"] for image in native]
    assert (answer["size"], answer["quality"], "warnings" in answer) == ("64x96", "medium", False)


def test_an_edit_replaces_what_its_mask_leaves_transparent(combined: Running) -> None:
    image, mask = sample_image(), Image.new("RGBA", (64, 64), "white")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    form = {"prompt": "a red apple", "seed": "3", "steps": "2", "output_format": "png"}
    files = {"image[]": ("upload", file_bytes(image)), "mask": ("mask.png", file_bytes(mask))}
    answer = post(combined, "edits", data=form, files=files).json()
    changed = (pixels(answer["data"][0]["b64_json"]) != np.asarray(image)).any(axis=-1)
    assert not changed[:, 32:].any() and changed[:, :32].mean() > 0.9
    assert answer["size"] == "64x64" and "warnings" not in answer
    # without transparency: white, as other servers have it
    files["mask"] = ("mask.png", file_bytes(mask.convert("RGB")))
    answer = post(combined, "edits", data=form, files=files).json()
    assert "no transparent part" in answer["warnings"][0]


def test_a_stream_shows_partial_images_of_the_running_denoise(combined: Running) -> None:
    sent = {"prompt": "a house", "stream": True, "partial_images": 3, "steps": 60, "size": "128x128"}
    answer = post(combined, "generations", json=sent)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    *partials, completed = map(json.loads, lines)
    assert [one["partial_image_index"] for one in partials] == [0, 1, 2]
    assert len({one["b64_json"] for one in partials}) == 3
    assert all(pixels(one["b64_json"]).shape == (16, 16, 3) for one in partials)
    assert completed["type"] == "image_generation.completed" and pixels(completed["b64_json"]).shape == (128, 128, 3)


def test_an_error_names_the_field_as_it_was_sent(combined: Running) -> None:
    answer = post(combined, "generations", json={"prompt": "x", "n": 9})
    assert answer.status_code == 400 and answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["param"] == "n" and answer.json()["error"]["message"].startswith("n must be")
    answer = post(combined, "edits", data={"prompt": "x"}, files={"image": ("a.png", b"no image")})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "image"


def test_an_image_by_address_and_the_model(combined: Running) -> None:
    sent = {"prompt": "x", "steps": 1, "response_format": "url"}
    address = post(combined, "generations", json=sent).json()["data"][0]["url"]
    assert httpx.get(address, timeout=HANG_S).content.startswith(b"\x89PNG")
    (model,) = httpx.get(f"{combined.url}/v1/models", timeout=HANG_S).json()["data"]
    assert post(combined, "generations", json={"prompt": "x", "steps": 1, "model": model["id"]}).status_code == 200
