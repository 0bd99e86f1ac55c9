"""A model with a transformer in requests to a handler: progress, previews, second passes, warnings, OpenVINO."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.pipelines.defaults import DEFAULTS_FILE
from handlers.stable_diffusion import CombinedHandler
from handlers.wire import RequestHead
from tests.support import tiny_transformers
from tests.support.frontend import Context, Frontend
from tests.support.jobs import load
from tests.support.networks import save_transformer_lora
from tests.support.samples import decode

STEPS = 6


def started(model: Path, **settings: Any) -> CombinedHandler:
    handler = CombinedHandler()
    handler.initialize(Context(model=str(model), max_batch_rows=16, **settings))
    return handler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_transformers.save("flux_schnell", tmp_path_factory.mktemp("model"))
    own = {"num_inference_steps": STEPS, "guidance_scale": 3, "width": 64, "height": 64}
    (folder / DEFAULTS_FILE).write_text(json.dumps(own))
    return folder


@pytest.fixture(scope="module")
def handler(model: Path) -> CombinedHandler:
    return started(model)


@pytest.fixture
def frontend(handler: CombinedHandler) -> Iterator[Frontend]:
    yield Frontend(handler)
    assert not handler.generations


def answered(frontend: Frontend, **fields: Any) -> list[dict[str, Any]]:
    name = frontend.send(headers={"X-Progress": "1"}, seed=3, **fields)
    frontend.run()
    return frontend.messages(name)


def test_each_step_is_told_once_and_previews_come_with_them(frontend: Frontend) -> None:
    *steps, last = answered(frontend, preview="true")
    told = [(message["progress"]["step"], message["progress"]["of"]) for message in steps]
    assert told == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert any(message["progress"].get("preview") for message in steps)
    assert decode(last["result"]["images"][0]).shape == (64, 64, 3)


def test_a_second_pass_enlarges_the_image_and_never_the_latents(frontend: Frontend) -> None:
    fields = {"hires_width": 96, "hires_height": 96, "num_inference_steps": 2}
    *_, last = answered(frontend, hires_upscaler="Lanczos", **fields)
    assert decode(last["result"]["images"][0]).shape == (96, 96, 3)
    *_, refused = answered(frontend, hires_upscaler="Latent", **fields)
    assert "hires_upscaler must be one of" in str(refused)


def test_what_was_not_applied_is_in_the_warnings(frontend: Frontend) -> None:
    *_, last = answered(frontend, prompt="a (red:1.3) house BREAK a cat", clip_skip=2, num_inference_steps=1)
    assert last["result"]["warnings"] == [
        "prompt: weights and BREAK are not applied, since this model reads it as plain text.",
        "clip_skip: without effect on this model.",
    ]


def test_tokens_are_counted_without_chunks(handler: CombinedHandler) -> None:
    counted = handler.worker.count({"prompt": b"a house " * 100}, RequestHead("txt2img"))
    assert len(counted["prompt"]) == 1 and counted["prompt"][0] > 150


def test_other_schedulers_are_refused(frontend: Frontend) -> None:
    *_, refused = answered(frontend, scheduler="DPM++ 2M")
    assert "these are there: Euler, FlowMatchEulerDiscreteScheduler" in str(refused)


@pytest.mark.parametrize(
    ("family", "in_torch"),
    [("sd3", ""), ("flux_schnell", ""), ("z_image", "its rows are lists"), ("qwen_image", "it is told sizes")],
)
def test_with_openvino_each_family_generates_what_torch_does(
    family: str, in_torch: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino")
    model, loras = tiny_transformers.save(family, tmp_path / "model"), tmp_path / "loras"
    loras.mkdir()
    save_transformer_lora(model, loras / "mine.safetensors")
    options = {"lora_dir": str(loras), "dtype": "float32"}
    with caplog.at_level(logging.INFO):
        fast = started(model, engine="openvino", **options)
    assert caplog.text.count("runs in torch: ") == bool(in_torch) and in_torch in caplog.text
    transformer = fast.worker.served["txt2img"].pipeline.transformer
    assert (in_memory(transformer) < in_memory(load(model)["txt2img"].transformer) / 2) is not bool(in_torch)
    exact = started(model, engine="torch", **options)
    # the LoRA needs the weights that have left torch's memory
    for prompt in ("a house", "a house <lora:mine:1>", "a house"):
        fields = {"prompt": prompt, "num_inference_steps": 2, "width": 64, "height": 64, "guidance_scale": 3}
        image, expected = (
            decode(answered(Frontend(one), **fields)[-1]["result"]["images"][0]) for one in (fast, exact)
        )
        assert np.abs(image - expected).max() <= 2


def in_memory(module: Any) -> int:
    """Bytes of its weights; one number that is told for all of a weight's is one."""
    return sum(tensor.untyped_storage().nbytes() for tensor in module.parameters())
