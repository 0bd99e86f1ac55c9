"""LoRAs and embeddings by prompt, in requests to a handler."""

import io
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend
from tests.support.networks import save_embedding, save_lora
from tests.support.samples import decode

LONG = " ".join(["apple"] * 90)
SETS = ["", "<lora:a:0.8>", "<lora:a:0.4>", "<lora:a:0.8><lora:b:0:0.5>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two folders: of LoRAs, and of embeddings."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate("ab", 1):
        save_lora(folder / "loras" / f"{name}.safetensors", seed=seed)
    save_lora(folder / "loras" / "xl.safetensors", "sdxl")
    save_embedding(folder / "embeddings" / "mine.safetensors")
    return folder


def started(model: Path, folder: Path, **settings: Any) -> CombinedHandler:
    handler = CombinedHandler()
    folders = {"lora_dir": str(folder / "loras"), "embeddings_dir": str(folder / "embeddings")}
    handler.initialize(Context(model=str(model), max_batch_rows=16, **folders, **settings))
    return handler


@pytest.fixture(scope="module")
def handler(tiny_model: Path, folder: Path) -> CombinedHandler:
    return started(tiny_model, folder)


def message(frontend: Frontend, prompt: str, **fields: Any) -> dict[str, Any]:
    name = frontend.send(prompt=prompt, seed=3, num_inference_steps=4, **fields)
    frontend.run()
    last: dict[str, Any] = frontend.messages(name)[-1]
    return last


def image(frontend: Frontend, prompt: str) -> Any:
    return decode(message(frontend, prompt)["result"]["images"][0])


def test_eight_requests_with_four_sets_take_turns(frontend: Frontend) -> None:
    # in this order, since four jobs start at a time
    prompts = [f"{text}{tags}" for tags in SETS for text in ("a house", "a cat")]
    alone = [image(frontend, prompt) for prompt in prompts]
    activity = frontend.handler.engine.batcher.activity
    before = activity.unet_forwards
    with frontend.engine_held():
        names = [frontend.send(prompt=prompt, seed=3, num_inference_steps=4) for prompt in prompts]
    frontend.run()
    assert activity.unet_forwards - before == 4 * len(SETS)  # those of one set share theirs
    for name, expected in zip(names, alone, strict=True):
        assert np.abs(decode(frontend.result(name)["images"][0]) - expected).max() <= 2
    assert all(not np.array_equal(alone[0], other) for other in alone[2::2])


def test_long_prompts_and_all_images_of_a_request_have_them(frontend: Frontend) -> None:
    with_lora = message(frontend, f"{LONG}<lora:b:0.8>", num_outputs=2)["result"]["images"]
    assert np.abs(decode(with_lora[0]) - image(frontend, f"{LONG}<lora:b:0.8>")).max() <= 2
    assert not np.array_equal(decode(with_lora[0]), image(frontend, LONG))


def test_the_files_parameters_keep_the_tags(frontend: Frontend) -> None:
    entry = message(frontend, "a house <lora:a:0.8>")["result"]["images"][0]
    text = Image.open(io.BytesIO(b64decode(entry["base64"]))).info["parameters"]
    assert text.startswith("a house <lora:a:0.8>\n")


def test_one_that_is_not_there_is_a_warning(frontend: Frontend) -> None:
    result = message(frontend, "a house <lora:aa:0.8>")["result"]
    assert result["warnings"] == ["There is no LoRA aa, so it has no effect; the nearest name is a (GET /models)."]
    assert np.array_equal(decode(result["images"][0]), image(frontend, "a house"))


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("<lora:xl>", "The LoRA xl does not fit this model: it was made for another one, or it is damaged."),
        ("<lora:a:strong>", "<lora:a:strong> in prompt has the weight 'strong', which is not a number: "),
    ],
)
def test_one_that_cannot_be_used_is_refused(frontend: Frontend, tag: str, sentence: str) -> None:
    error = message(frontend, f"a house {tag}")["error"]
    assert error["status"] == 400 and error["message"].startswith(sentence)


def test_the_models_description_lists_what_is_there(frontend: Frontend, folder: Path) -> None:
    (model,) = frontend.handler.worker.describe(0)["models"]
    assert (model["loras"], model["embeddings"]) == (["a", "b", "xl"], ["mine"])
    late = save_lora(folder / "loras" / "late.safetensors", seed=9)
    (model,) = frontend.handler.worker.describe(0)["models"]
    assert model["loras"] == ["a", "b", "late", "xl"]
    assert not np.array_equal(image(frontend, "a house<lora:late>"), image(frontend, "a house"))
    late.unlink()


def test_an_embedding_is_more_than_its_name(frontend: Frontend, folder: Path) -> None:
    with_it = image(frontend, "a mine <lora:a:1:0>")
    file = folder / "embeddings" / "mine.safetensors"
    content = file.read_bytes()
    file.unlink()
    assert not np.array_equal(with_it, image(frontend, "a mine <lora:a:1:0>"))
    file.write_bytes(content)
    assert np.array_equal(with_it, image(frontend, "a mine <lora:a:1:0>"))


@pytest.mark.parametrize("unload", [0, 2**30])
def test_with_openvino_such_requests_run_in_torch(
    tiny_model: Path, folder: Path, handler: CombinedHandler, unload: int
) -> None:
    pytest.importorskip("openvino")
    exact, fast = (
        Frontend(handler),
        Frontend(started(tiny_model, folder, engine="openvino", dtype="float32", max_lora_bytes=unload)),
    )
    for prompt in ("a house<lora:a>", "a house", "a house<lora:b>"):
        assert np.abs(image(exact, prompt) - image(fast, prompt)).max() <= 2
    assert fast.handler.worker.served["txt2img"].loras.loaded == (["a", "b"] if unload else [])
