"""The contract through the real server, an archive for each task: HTTP, TorchServe, stock pipelines."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.paths import SIDE
from tests.support.running import HANG_S, Running, wait_for
from tests.support.samples import b64, decode, file_bytes, half_mask, sample_image

pytestmark = pytest.mark.e2e


DEFAULTS = {
    "num_inference_steps": 20,
    "guidance_scale": 3.5,
    "width": SIDE,
    "height": SIDE,
    "drawn_size": SIDE,
    "scheduler": "DPMSolverMultistepScheduler",
    "zero_snr": True,
    "size_multiple": 8,
}
INIT = b64(sample_image())
OWN_SIZE, OWN_MASK = sample_image(SIDE, SIDE), half_mask(SIDE, SIDE)  # which the model need not scale
FIELDS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"init_image": b64(OWN_SIZE)},
    "masking": {"init_image": b64(OWN_SIZE), "mask_image": b64(OWN_MASK)},
}


def test_ping_and_models(three: Running) -> None:
    assert httpx.get(three.url + "/ping").json() == {"status": "success"}
    models = three.models()
    assert [model["tasks"] for model in models] == [["txt2img"], ["img2img"], ["masking"]]
    for model in models:
        assert model["model"].endswith("embedded") and model["safety_checker"] is True
        assert model["defaults"] == DEFAULTS


@pytest.mark.parametrize("task", FIELDS)
def test_alone_the_image_is_the_stock_pipelines_to_the_bit(
    three: Running, pipelines: dict[str, Any], task: str
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(three.models()[0]["threads"])
    try:
        arguments: dict[str, Any] = {
            "txt2img": {"width": SIDE, "height": SIDE // 2},
            "img2img": {"image": OWN_SIZE, "strength": 0.6},
        }.get(task, {"image": OWN_SIZE, "mask_image": OWN_MASK, "width": SIDE, "height": SIDE, "strength": 0.6})
        expected = pipelines[task](
            "a house", negative_prompt="dull", num_inference_steps=12, guidance_scale=5.5,
            generator=torch.Generator().manual_seed(11), **arguments,
        ).images[0]  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    fields = {
        "prompt": "a house",
        "negative_prompt": "dull",
        "num_inference_steps": 12,
        "guidance_scale": 5.5,
        "seed": 11,
    }
    extra = {"width": 2 * SIDE} if task == "txt2img" else {"strength": 0.6}
    image = decode(three.images(task, **fields, **extra, **FIELDS[task])[0])
    if task == "txt2img":  # generated at the model's own size, and scaled
        expected = expected.resize((2 * SIDE, SIDE), Image.Resampling.LANCZOS)
    if task == "masking":  # under black the init image comes back, which the stock pipeline does not promise
        expected = Image.composite(expected, OWN_SIZE, OWN_MASK)
    assert np.array_equal(image, np.asarray(expected))


def test_the_end_of_a_prompt_of_100_tokens_counts(three: Running) -> None:
    prompt = "a red apple " * 33
    first, second = (
        decode(three.images("txt2img", prompt=prompt + end, seed=1, num_inference_steps=5)[0]) for end in ("up", "down")
    )
    assert not np.array_equal(first, second)


def test_what_the_safety_checker_flags_comes_back_black(three: Running) -> None:
    for image in three.images("txt2img", prompt="adults only", seed=1, num_outputs=2):
        assert image["nsfw"] is True and decode(image).max() == 0
    for prompt in ("a red apple", "stop sign"):
        for image in three.images("txt2img", prompt=prompt, seed=1, num_outputs=2):
            assert image["nsfw"] is False and decode(image).max() > 0


def test_an_images_seed_reproduces_it(three: Running) -> None:
    images = three.images("txt2img", num_outputs=4, num_inference_steps=6)
    seeds = [image["seed"] for image in images]
    assert seeds == list(range(seeds[0], seeds[0] + 4)) and seeds[0] > 0
    for image in images:
        again = three.images("txt2img", seed=image["seed"], num_inference_steps=6)[0]
        assert np.abs(decode(again) - decode(image)).max() <= 2
    one, other = (three.images("txt2img", seed=9, num_inference_steps=6) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("size", [(64, 64), (500, 333)])
def test_masking_keeps_what_is_black_and_the_size(three: Running, size: tuple[int, int]) -> None:
    init = sample_image(*size)
    fields = {"init_image": b64(init), "mask_image": b64(half_mask(*size)), "num_inference_steps": 3}
    image = decode(three.images("masking", **fields)[0])
    assert image.shape == (size[1], size[0], 3)
    left, right = image[:, : size[0] // 2], image[:, size[0] // 2 :]
    assert np.array_equal(right, np.asarray(init)[:, size[0] // 2 :])
    assert not np.array_equal(left, np.asarray(init)[:, : size[0] // 2])


def test_more_strength_changes_more(three: Running) -> None:
    def change(strength: float) -> float:
        image = decode(three.images("img2img", init_image=INIT, seed=5, strength=strength, num_inference_steps=10)[0])
        return float(np.abs(image - np.asarray(sample_image(), dtype=int)).mean())

    assert change(0.1) < change(0.5) < change(0.9)


def _turned() -> str:
    exif = Image.Exif()
    exif[0x0112] = 6
    return b64(sample_image(96, 64), exif=exif)


@pytest.mark.parametrize(
    ("init_image", "size"),
    [
        ("data:image/png;base64," + INIT, (64, 64)),
        (INIT.replace("+", " "), (64, 64)),
        (INIT.rstrip("="), (64, 64)),
        (b64(sample_image(), "JPEG"), (64, 64)),
        (b64(sample_image(), "WEBP"), (64, 64)),
        (b64(Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64))), (64, 64)),
        (b64(sample_image().convert("RGBA")), (64, 64)),
        (b64(sample_image().convert("P")), (64, 64)),
        (_turned(), (64, 96)),
        (b64(sample_image(70, 65)), (70, 65)),
    ],
    ids=["data-url", "spaces", "no-padding", "jpeg", "webp", "16-bit", "rgba", "palette", "exif", "odd-size"],
)
def test_input_images_of_the_contract(three: Running, init_image: str, size: tuple[int, int]) -> None:
    image = decode(three.images("img2img", init_image=init_image, num_inference_steps=2)[0])
    assert image.shape == (size[1], size[0], 3)


def test_a_form_whose_plus_signs_were_not_escaped(three: Running) -> None:
    body = f"prompt=a+red+apple&num_inference_steps=2&init_image={INIT}"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert httpx.post(three.url + "/img2img", content=body, headers=headers, timeout=HANG_S).status_code == 200


def test_json_and_multipart_bodies_give_the_same_image(three: Running) -> None:
    fields = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 2}
    form = three.images("img2img", init_image=INIT, **fields)
    url = three.url + "/img2img"
    parts = {name: (None, str(value)) for name, value in (fields | {"init_image": INIT}).items()}
    answers = [
        httpx.post(url, json=fields | {"init_image": INIT}, timeout=HANG_S),
        httpx.post(url, files=parts, timeout=HANG_S),
        httpx.post(url, data=fields, files={"init_image": ("a.png", file_bytes(sample_image()))}, timeout=HANG_S),
    ]
    for answer in answers:
        assert answer.json()["images"] == form


def test_progress_comes_step_by_step(three: Running) -> None:
    """Each event is seen by the client before the work that follows it is done."""
    fields = {"prompt": "x", "num_inference_steps": 60}
    before = three.activity("txt2img")["unet_forwards"]
    at_step_5, steps = 0, []
    headers = {"Accept": "text/event-stream"}
    with httpx.stream("POST", three.url + "/txt2img", data=fields, headers=headers, timeout=HANG_S) as answer:
        events = _events(answer)
        for name, data in events:
            if name == "result":
                break
            steps.append(data["step"])
            if data["step"] == 5:
                at_step_5 = three.activity("txt2img")["unet_forwards"] - before
    assert steps == list(range(1, 61)) and data["status"] == "success"
    assert 5 <= at_step_5 < 60  # when the client saw step 5, the last steps had not been run


def _events(answer: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
def test_a_client_that_leaves_frees_its_slot(three: Running, accept: str) -> None:
    before = three.activity("txt2img")["unet_forwards"]
    body = b"prompt=x&num_inference_steps=250"
    head = f"POST /txt2img HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
    address = urlsplit(three.url)
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_for(lambda: three.activity("txt2img")["unet_forwards"] > before)
    # asking is a request itself, which is how TorchServe learns that the other one is gone
    wait_for(lambda: three.activity("txt2img")["open_requests"] == 0, 20)
    after = three.activity("txt2img")["unet_forwards"]
    assert before < after < before + 250
    assert three.activity("txt2img")["unet_forwards"] <= after + 1  # the step that was running


def test_a_short_request_overtakes_long_ones(three: Running) -> None:
    order: list[str] = []
    started = threading.Event()

    def long() -> None:
        headers = {"Accept": "text/event-stream"}
        fields = {"prompt": "x", "num_inference_steps": 40}
        with httpx.stream("POST", three.url + "/txt2img", data=fields, headers=headers, timeout=HANG_S) as answer:
            for name, _ in _events(answer):
                started.set()
                if name == "result":
                    order.append("long")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(long) for _ in range(2)]
        started.wait(HANG_S)
        three.images("txt2img", num_inference_steps=3)
        order.append("short")
        for future in futures:
            future.result()
    assert order == ["short", "long", "long"]


def test_logs_stay_quiet_and_hold_no_prompt(three: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    three.images("txt2img", prompt="a very secret prompt")
    folder = three.output.parent
    logs = [*folder.rglob("*.log"), *folder.rglob("*.out")]
    assert any(path.name == "model_log.log" for path in logs)
    for path in logs:
        text = path.read_text(errors="replace")
        assert "secret prompt" not in text and len(text) < 20_000, path


def test_two_servers_run_side_by_side(three: Running, combined: Running) -> None:
    for server in (three, combined):
        assert len(server.images("txt2img", num_inference_steps=2)) == 1
