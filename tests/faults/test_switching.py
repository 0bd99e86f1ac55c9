"""Models that requests name, on a real server that holds one of them at a time."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import tiny_models
from tests.support.jobs import a_request, generated_alone, load
from tests.support.running import HANG_S, Running, running, wait_for
from tests.support.samples import b64, decode, half_mask, sample_image

pytestmark = pytest.mark.faults
MAIN, OTHER = "", "other"
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("switching")


@pytest.fixture(scope="module")
def models(folder: Path, tiny_model: Path) -> dict[str, Path]:
    """Two models of unlike families: the main one, and one in the folder."""
    return {MAIN: tiny_model, OTHER: tiny_models.save("sdxl", folder / "models" / OTHER)}


@pytest.fixture(scope="module")
def instance(folder: Path, models: dict[str, Path]) -> Iterator[Running]:
    options = ["--model", models[MAIN], "--models-dir", folder / "models", "--max-models", "1", "--engine", "torch"]
    variables = {"SD_CONFIG": str(folder / "config.json"), "HF_HOME": str(folder / "hub")}
    with running(folder, *map(str, options), **variables) as instance:
        wait_for(lambda: state(instance, OTHER) == "ready")
        yield instance


def available(instance: Running) -> dict[str, dict[str, Any]]:
    told = httpx.get(f"{instance.url}/models", timeout=HANG_S).json()
    return {model["name"]: model for model in told["available"]}


def state(instance: Running, name: str) -> str | None:
    return available(instance).get(name, {}).get("state")


def test_each_task_of_each_model_is_the_stock_pipelines(instance: Running, models: dict[str, Path]) -> None:
    sent = {"init_image": b64(sample_image()), "mask_image": b64(half_mask())}
    for name, path in models.items():
        stock = load(path)
        expected = np.asarray(generated_alone(stock, a_request("txt2img", "a house", 3, STEPS, 5.0))).astype(int)
        fields = {"prompt": "a house", "negative_prompt": "blurred", "seed": 3, "guidance_scale": 5, "model": name}
        (image,) = instance.images("txt2img", **fields, num_inference_steps=STEPS, width=64, height=64)
        assert np.array_equal(decode(image), expected)
        for task in ("img2img", "masking"):
            path_of_task = f"custom/{name}/{task}" if name else task
            (by_path,) = instance.images(path_of_task, seed=3, num_inference_steps=STEPS, **sent)
            (by_field,) = instance.images(task, seed=3, num_inference_steps=STEPS, model=name, **sent)
            assert by_path == by_field and np.ptp(decode(by_path)) > 20
    assert len(instance.workers()) == 1


def test_no_request_is_lost_while_models_take_turns(instance: Running) -> None:
    most, ended = 0, threading.Event()

    def count() -> None:
        nonlocal most
        while not ended.wait(0.1):
            most = max(most, len(instance.workers()))

    def image(name: str, seed: int) -> np.ndarray:
        fields = {"model": name, "seed": seed, "num_inference_steps": 40 if seed % 2 else 4}
        return decode(instance.images("txt2img", **fields)[0])

    asked = [(name, seed) for seed in range(1, 5) for name in (MAIN, OTHER)]
    counting = threading.Thread(target=count)
    counting.start()
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(image, *zip(*asked, strict=True)))
    ended.set()
    counting.join()
    assert most == 1
    for (name, seed), one in sorted(zip(asked, together, strict=True), key=lambda pair: pair[0]):
        if seed < 3:
            assert np.abs(one - image(name, seed)).max() <= 3
    assert np.abs(together[0] - together[1]).max() > 20


def test_a_stream_tells_that_its_model_is_loaded(instance: Running) -> None:
    instance.images("txt2img", num_inference_steps=1)
    with httpx.stream(
        "POST", f"{instance.url}/custom/{OTHER}", data={"prompt": "x", "num_inference_steps": "2"},
        headers={"Accept": "text/event-stream"}, timeout=HANG_S,
    ) as answer:  # fmt: skip
        events = [line for line in answer.iter_lines() if line.startswith(("event", 'data: {"place'))]
    assert events[1] == f'data: {{"place": 1, "loads": "{OTHER}"}}' and events[-1] == "event: result"


def test_one_that_fails_tells_why_and_leaves_the_others(instance: Running, folder: Path) -> None:
    faulty = tiny_models.save("sd1", folder / "models" / "faulty")
    config = json.loads((faulty / "unet" / "config.json").read_text())
    (faulty / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 48}))
    short = tiny_models.save("sd1", folder / "models" / "short") / "unet" / "diffusion_pytorch_model.safetensors"
    short.write_bytes(short.read_bytes()[:-100])
    wait_for(lambda: (state(instance, "faulty"), state(instance, "short")) == ("ready", "failed"))
    answer = instance.post("txt2img", {"prompt": "x", "model": "short"})
    assert answer.status_code == 503
    assert answer.json()["message"].endswith("is not complete: it is being copied, or is damaged.")
    answer = instance.post("txt2img", {"prompt": "x", "model": "faulty"})
    assert answer.status_code == 503
    assert answer.json()["message"].startswith(f"This model cannot be loaded: The model {faulty} cannot be loaded: ")
    assert instance.images("txt2img", num_inference_steps=2)
    assert len(instance.workers()) == 1


def test_a_model_that_comes_while_it_runs(instance: Running, folder: Path) -> None:
    refused = instance.post("txt2img", {"prompt": "x", "model": "latecomer"})
    assert refused.status_code == 400 and "is not one of the models here: use" in refused.json()["message"]
    tiny_models.save("turbo", folder / "models" / "latecomer")
    wait_for(lambda: state(instance, "latecomer") == "ready")
    assert instance.images("txt2img", model="latecomer", num_inference_steps=2)
    loaded = available(instance)
    assert loaded["latecomer"]["loaded"] and not loaded[OTHER]["loaded"]
    (described,) = [model for model in instance.models() if model["loaded"]]
    assert (described["archive"], described["tasks"]) == ("custom-latecomer", ["txt2img", "img2img", "masking"])
