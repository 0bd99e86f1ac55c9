"""Other models than the embedded one, on the real server: from a hub, for inpainting, custom, and large."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from tests.support import hub, tiny_models
from tests.support.paths import EMBEDDED
from tests.support.running import Running, running, wait_for
from tests.support.samples import b64, decode, half_mask, sample_image

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def instance(folder: Path) -> Iterator[Running]:
    """A combined archive with SDXL from a hub, an inpainting model from a folder, and a config.json yet to come."""
    inpainting = tiny_models.save("inpainting", folder / "inpainting")
    with hub.serving() as served:
        served.models["some/sdxl"] = tiny_models.save("sdxl", folder / "sdxl")
        variables = {
            "HF_ENDPOINT": served.url,
            "HF_HOME": str(folder / "cache"),
            "SD_CONFIG": str(folder / "config.json"),
        }
        options = ("--model", "some/sdxl", "--inpainting-model", str(inpainting))
        with running(folder, *options, **variables) as instance:
            yield instance


def test_a_hub_model_is_downloaded_and_served(instance: Running) -> None:
    model, inpainting = instance.models()
    assert (model["model"], model["tasks"]) == ("some/sdxl", ["txt2img", "img2img"])
    assert (inpainting["model"], inpainting["tasks"]) == ("inpainting", ["masking"])
    assert inpainting["defaults"]["scheduler"] == "PNDMScheduler"
    assert (model["defaults"]["width"], model["defaults"]["scheduler"]) == (64, "EulerDiscreteScheduler")
    output = instance.output.read_text()
    assert "Serving some/sdxl and inpainting on cpu" in output
    assert "inpainting has no safety checker: every answer of it says nsfw = false" in output
    assert len(instance.workers()) == 1
    init = b64(sample_image(96, 64))
    for task, fields in (("txt2img", {}), ("img2img", {"init_image": init}), ("masking", {"init_image": init})):
        if task == "masking":
            fields["mask_image"] = b64(half_mask(96, 64))
        image = instance.images(task, num_inference_steps=4, seed=1, **fields)[0]
        assert np.ptp(decode(image)) > 20 and image["nsfw"] is False


def test_another_scheduler_by_name(instance: Running) -> None:
    names = instance.models()[0]["schedulers"]
    assert "DDIMScheduler" in names
    usual, other, named = (
        instance.images("txt2img", num_inference_steps=4, seed=1, scheduler=name)[0]["base64"]
        for name in ("", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler")
    )
    assert usual == named != other
    (by_its_usual_name,) = instance.images("txt2img", num_inference_steps=4, seed=1, scheduler="Euler a")
    assert by_its_usual_name["base64"] != usual
    refused = instance.post("txt2img", {"prompt": "x", "scheduler": "Eular"})
    assert refused.status_code == 400
    assert "not 'Eular': the nearest are Euler" in refused.json()["message"]


def test_a_custom_model_comes_and_goes_without_a_restart(instance: Running, folder: Path) -> None:
    assert httpx.get(f"{instance.url}/custom_models").json() == []
    assert instance.post("custom/emoji", {"prompt": "x"}).status_code == 404
    entry = {
        "model_path": str(EMBEDDED),
        "ui_label": "Emoji",
        "url_path": "emoji",
        "requires_safety_checker": False,
    }
    broken = {"model_path": str(folder / "nothing"), "url_path": "broken"}
    damaged = {"model_path": str(tiny_models.save("sd1", folder / "damaged")), "url_path": "damaged"}
    (folder / "damaged" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    (folder / "config.json").write_text(json.dumps({"custom_models": [entry, broken, damaged]}))
    assert httpx.get(f"{instance.url}/custom_models").json()[0] == entry
    wait_for(lambda: "Custom model: Emoji at /custom/emoji" in instance.output.read_text())
    wait_for(lambda: "The custom model broken cannot be served: There is no model at" in instance.output.read_text())
    wait_for(lambda: "The custom model damaged cannot be served: " in instance.output.read_text())
    workers = len(instance.workers())
    answer = instance.post("custom/emoji", {"prompt": "no one under eighteen", "seed": 3})
    assert answer.status_code == 200, answer.text
    image = answer.json()["images"][0]
    assert image["nsfw"] is False and np.ptp(decode(image)) > 50  # nobody checked
    assert len(instance.workers()) == workers + 1
    for name, reason in (("broken", "There is no model at"), ("damaged", "has no weights in it: it is damaged")):
        answer = instance.post(f"custom/{name}", {"prompt": "x"})
        assert answer.status_code == 503 and reason in answer.json()["message"]

    # this one does not wait for a request
    early = entry | {"url_path": "early", "load": "start"}
    (folder / "config.json").write_text(json.dumps({"custom_models": [early]}))
    wait_for(lambda: "at /custom/early" in instance.output.read_text() and len(instance.workers()) == workers + 1)
    assert "Custom model emoji was removed." in instance.output.read_text()

    # another model in its place, and then none: what is in flight is generated to its end
    fields = {"prompt": "a red apple", "num_inference_steps": 60}
    with ThreadPoolExecutor() as pool:
        for models in ([early | {"requires_safety_checker": True}], []):
            # its new worker loads for longer than the proxy waits for it, if the machine is busy
            wait_for(lambda: instance.post("custom/early", fields | {"num_inference_steps": 1}).status_code == 200)
            running = [pool.submit(instance.post, "custom/early", fields) for _ in range(2)]
            wait_for(lambda: instance.models()[-1]["activity"]["open_requests"] == 2)
            (folder / "config.json").write_text(json.dumps({"custom_models": models}))
            assert [answer.result().status_code for answer in running] == [200, 200]
            wait_for(lambda: len(instance.workers()) == workers + len(models))  # noqa: B023
    assert instance.post("custom/early", {"prompt": "x"}).status_code == 404
    assert instance.post("custom/emoji", {"prompt": "x"}).status_code == 404
    assert instance.images("txt2img", num_inference_steps=2)


def test_three_workers_share_one_copy_of_large_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_models.make("sd1")
    large = StableDiffusionPipeline(**{**model.components, "unet": tiny_models.unet(block_out_channels=(320, 832))},
                                    requires_safety_checker=False)  # fmt: skip
    large.save_pretrained(tmp_path / "large")
    weights = sum(
        tensor.nbytes for file in (tmp_path / "large").rglob("*.safetensors") for tensor in load_file(file).values()
    )
    assert weights > 500e6
    options = ("--model", str(tmp_path / "large"), "--archives", "three", "--engine", "torch")
    with running(tmp_path, *options) as instance:
        memory = [worker.memory_full_info() for worker in instance.workers()]
        one = max(info.rss for info in memory)
        imports = one - weights
        assert len(memory) == 3 and imports > 0
        together = sum(info.pss for info in memory)
        print(f"PSS of three: {together / 1e6:.0f} MB; RSS of one: {one / 1e6:.0f} MB; weights {weights / 1e6:.0f} MB")
        assert together <= 1.15 * one + 2 * imports
