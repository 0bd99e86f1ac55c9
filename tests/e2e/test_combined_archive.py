"""The combined archive: three pipelines behind one worker, merged step by step."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.running import HANG_S, Running, wait_for
from tests.support.samples import b64, decode, half_mask, sample_image

pytestmark = pytest.mark.e2e


def test_one_archive_serves_all_three(combined: Running) -> None:
    (model,) = combined.models()
    assert model["archive"] == "stable-diffusion" and model["tasks"] == ["txt2img", "img2img", "masking"]


def test_eight_mixed_requests_at_once_match_their_solo_images(combined: Running) -> None:
    images = {"init_image": b64(sample_image())}
    mask = {"mask_image": b64(half_mask())}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("txt2img", {"guidance_scale": 7.5, "num_inference_steps": 20}),
        ("txt2img", {"guidance_scale": 1, "num_inference_steps": 12}),
        ("txt2img", {"guidance_scale": 7.5, "num_inference_steps": 15, "height": 128}),
        ("txt2img", {"guidance_scale": 1, "num_inference_steps": 25, "height": 128}),
        ("img2img", images | {"guidance_scale": 7.5, "num_inference_steps": 20}),
        ("img2img", images | {"guidance_scale": 1, "num_inference_steps": 30, "strength": 0.5}),
        ("masking", images | mask | {"guidance_scale": 7.5, "num_inference_steps": 20}),
        ("masking", images | mask | {"guidance_scale": 1, "num_inference_steps": 10, "strength": 1}),
    ]
    for seed, (_, fields) in enumerate(requests, 1):
        fields["seed"] = seed
    solo = [decode(combined.images(task, **fields)[0]) for task, fields in requests]
    before = combined.activity("txt2img")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: combined.images(request[0], **request[1])[0], requests))
    after = combined.activity("txt2img")
    assert after["merged_forwards"] - before["merged_forwards"] > 10
    for image, expected in zip(together, solo, strict=True):
        assert np.abs(decode(image) - expected).max() <= 2


def test_a_variation_lies_between_two_seeds(combined: Running) -> None:
    fields = {"seed": 5, "num_inference_steps": 6}
    plain = combined.images("txt2img", **fields)[0]
    assert combined.images("txt2img", **fields, variation_strength=0)[0] == plain
    varied = combined.images("txt2img", **fields, variation_seed=9, variation_strength=0.3, num_outputs=2)
    assert [(image["seed"], image["variation_seed"]) for image in varied] == [(5, 9), (5, 10)]
    other = combined.images("txt2img", **fields | {"seed": 9})[0]
    at_the_end = combined.images("txt2img", **fields, variation_seed=9, variation_strength=1)[0]
    assert np.abs(decode(varied[0]) - decode(plain)).mean() > 0
    # with its scheduler, which draws no noise later, a whole variation is the other seed's image
    assert np.array_equal(decode(at_the_end), decode(other))


def test_a_second_pass_enlarges_an_image_beside_other_requests(combined: Running) -> None:
    fields: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "hires_width": 128, "hires_height": 96}
    alone = [
        combined.images("txt2img", **fields, hires_upscaler=upscaler)[0] for upscaler in ("Lanczos", "latent (bicubic)")
    ]
    assert [(image["width"], image["height"], image["seed"]) for image in alone] == [(128, 96, 3)] * 2
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(
            lambda more: combined.images("txt2img", **fields | more)[0],
            [{"hires_upscaler": "Lanczos"}, {"hires_upscaler": "Latent (bicubic)"}, {"hires_upscaler": ""}],
        )
        images = [decode(image) for image in together]
    for image, expected in zip(images, alone, strict=False):
        assert np.abs(image - decode(expected)).max() <= 2
    assert images[2].shape == (64, 64, 3)
    assert "Latent (bicubic)" in combined.models()[0]["upscalers"]


def test_an_image_is_enlarged_without_the_model(combined: Running) -> None:
    before = combined.activity("txt2img")["unet_forwards"]
    (image,) = combined.images("upscale", init_image=b64(sample_image(50, 30)), scale=2, upscaler="Nearest")
    assert np.array_equal(decode(image)[::2, ::2], np.asarray(sample_image(50, 30)))
    assert combined.activity("txt2img")["unet_forwards"] == before


def test_an_init_image_is_fitted_to_the_size_that_is_asked_for(combined: Running) -> None:
    images = {"init_image": b64(sample_image(120, 80)), "mask_image": b64(half_mask(120, 80))}
    for task in ("img2img", "masking"):
        for fit in ("stretch", "crop", "pad"):
            size = {"width": 64, "height": 96, "fit": fit}
            image = combined.images(task, **images, **size, num_inference_steps=2)[0]
            assert (image["width"], image["height"]) == (64, 96)


def test_of_thirty_three_open_requests_nobody_starves(combined: Running) -> None:
    with ThreadPoolExecutor(33) as pool:
        answers = list(
            pool.map(lambda seed: combined.images("txt2img", seed=seed, num_inference_steps=10), range(1, 34))
        )
    assert [answer[0]["seed"] for answer in answers] == list(range(1, 34))


def test_more_requests_than_one_client_may_have_are_told_to_come_back(combined: Running) -> None:
    async def until_one_is_refused() -> httpx.Response:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=HANG_S, limits=limits) as client:
            fields = {"prompt": "x", "num_inference_steps": 250}
            tasks = [asyncio.create_task(client.post(f"{combined.url}/txt2img", data=fields)) for _ in range(120)]
            done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            return done.pop().result()

    answer = asyncio.run(until_one_is_refused())
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert "You have 64 open requests" in answer.json()["message"]
    # the clients of all the others have left, and so has their work
    wait_for(lambda: httpx.get(f"{combined.url}/models", timeout=HANG_S).status_code == 200)
    wait_for(lambda: combined.activity("txt2img")["open_requests"] == 0, 60)
