"""Families with a transformer on a real server, which holds one model at a time and takes others by request."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny_transformers
from tests.support.jobs import a_request, generated_alone, load
from tests.support.running import Running, running
from tests.support.samples import b64, decode, half_mask, sample_image

pytestmark = pytest.mark.faults
MAIN, *OTHERS = "z_image", "sd3", "flux_dev"
STEPS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    for family in (MAIN, *OTHERS):
        tiny_transformers.save(family, folder / "models" / family)
    return folder


@pytest.fixture(scope="module")
def instance(folder: Path) -> Iterator[Running]:
    options = ["--model", folder / "models" / MAIN, "--models-dir", folder / "models", "--max-models", "1",
               "--engine", "torch"]  # fmt: skip
    variables = {"SD_CONFIG": str(folder / "config.json"), "HF_HOME": str(folder / "hub")}
    with running(folder, *map(str, options), **variables) as instance:
        yield instance


def test_mixed_requests_of_unlike_sizes_share_forwards(instance: Running) -> None:
    images = {"init_image": b64(sample_image())}
    requests: list[tuple[str, dict[str, Any]]] = [
        ("txt2img", {"width": 64, "height": 64, "guidance_scale": 4}),
        ("txt2img", {"width": 80, "height": 64, "guidance_scale": 0}),
        ("txt2img", {"width": 64, "height": 72, "guidance_scale": 2}),
        ("img2img", images | {"strength": 0.6}),
        ("masking", images | {"mask_image": b64(half_mask()), "guidance_scale": 3}),
    ]
    for seed, (_, fields) in enumerate(requests, 1):
        fields |= {"seed": seed, "num_inference_steps": 12}
    alone = [decode(instance.images(task, **fields)[0]) for task, fields in requests]
    before = instance.activity("txt2img")["merged_forwards"]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: instance.images(request[0], **request[1])[0], requests))
    assert instance.activity("txt2img")["merged_forwards"] > before
    for image, expected in zip(together, alone, strict=True):
        assert np.abs(decode(image) - expected).max() <= 2
    assert alone[2].shape == (72, 64, 3)  # generated at 64 x 80


def test_other_samplers_are_refused_with_those_that_there_are(instance: Running) -> None:
    answer = instance.post("txt2img", {"prompt": "x", "scheduler": "DPM++ 2M"})
    assert (
        answer.status_code == 400
        and "these are there: Euler, FlowMatchEulerDiscreteScheduler" in answer.json()["message"]
    )


def test_each_family_is_its_stock_pipeline(instance: Running, folder: Path) -> None:
    sent = {"init_image": b64(sample_image()), "mask_image": b64(half_mask())}
    for family in (MAIN, *OTHERS):
        model = {} if family == MAIN else {"model": family}
        fields = {"prompt": "a (red:1.2) house", "negative_prompt": "blurred", "seed": 3, "guidance_scale": 4}
        size = {"num_inference_steps": STEPS, "width": 64, "height": 64}
        answer = instance.post("txt2img", fields | size | model).json()
        request = a_request("txt2img", str(fields["prompt"]), 3, STEPS, 4.0)
        expected = np.asarray(generated_alone(load(folder / "models" / family), request)).astype(int)
        assert np.array_equal(decode(answer["images"][0]), expected)
        assert "prompt: weights and BREAK are not applied" in answer["warnings"][0]
        for task in ("img2img", "masking"):
            (image,) = instance.images(task, seed=3, num_inference_steps=STEPS, **sent, **model)
            assert np.ptp(decode(image)) > 20 and image["nsfw"] is False
