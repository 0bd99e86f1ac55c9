"""The arguments that a request becomes, for pipelines that take some of them or all."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from handlers.imaging.documents import Document
from handlers.imaging.regions import Crop
from handlers.pipelines.arguments import pipeline_arguments, without_effect
from handlers.pipelines.noise import generator
from handlers.request.fields import GenerationRequest
from handlers.request.samplers import Sampler
from tests.support import tiny_models
from tests.support.samples import sample_image

CROP = Crop.whole((64, 32), (32, 16))
COMMON = {"prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "eta"}


def a_request(task: str) -> GenerationRequest:
    """An image of 64 x 32 pixels that the model generates at 32 x 16."""
    return GenerationRequest(
        task=task, prompt="a house", negative_prompt="blurred", seed=1, num_outputs=1, num_inference_steps=5,
        guidance_scale=7.5, eta=0.5, width=32, height=16, answer_size=(64, 32), strength=0.8,
        init_image=Document(sample_image(64, 32)) if task != "txt2img" else None,
        mask_image=Image.linear_gradient("L").resize((64, 32)) if task == "masking" else None,
    )  # fmt: skip


class Takes:
    """A pipeline whose call takes every argument."""

    def __call__(
        self,
        prompt: Any,
        negative_prompt: Any,
        num_inference_steps: Any,
        guidance_scale: Any,
        eta: Any,
        width: Any,
        height: Any,
        image: Any,
        strength: Any,
        mask_image: Any,
    ) -> None:
        pass


class TakesLittle:
    """A pipeline of another family, without a negative prompt or eta."""

    def __call__(self, prompt: Any, num_inference_steps: Any, guidance_scale: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("txt2img", {"width", "height"}),
        ("img2img", {"image", "strength"}),
        ("masking", {"width", "height", "image", "strength", "mask_image"}),
    ],
)
def test_each_task_has_its_arguments_at_the_models_size(task: str, more: set[str]) -> None:
    arguments = pipeline_arguments(a_request(task), Takes(), CROP)
    assert arguments.keys() == COMMON | more
    assert (arguments["prompt"], arguments["negative_prompt"], arguments["eta"]) == ("a house", "blurred", 0.5)
    for name in more & {"image", "mask_image"}:
        assert arguments[name].size == (32, 16)
    if "width" in more:
        assert (arguments["width"], arguments["height"]) == (32, 16)


def test_arguments_that_a_family_does_not_take_are_left_out() -> None:
    arguments = pipeline_arguments(a_request("masking"), TakesLittle(), CROP)
    assert arguments == {"prompt": "a house", "num_inference_steps": 5, "guidance_scale": 7.5}


@pytest.mark.parametrize(
    ("kind", "changes", "sentences"),
    [
        ("sd1", {}, []),
        ("sd1", {"guidance_scale": 1.0}, ["negative_prompt: without effect at guidance_scale=1."]),
        ("sd1", {"guidance_scale": 1.0, "negative_prompt": ""}, []),
        ("sdxl", {"guidance_scale": 0.5}, ["negative_prompt: without effect at guidance_scale=0.5."]),
        ("sd1", {"eta": 0.5}, ["eta: without effect with this scheduler. scheduler=DDIM knows it."]),
        ("sd1", {"eta": 0.5, "sampler": Sampler("DDIMScheduler", {}, "DDIM")}, []),
    ],
)
def test_what_a_pipeline_makes_no_use_of_is_named(kind: str, changes: dict[str, Any], sentences: list[str]) -> None:
    pipeline = tiny_models.make(kind)
    assert without_effect(replace(a_request("txt2img"), **({"eta": 0.0} | changes)), pipeline) == sentences


def test_a_seed_starts_from_the_same_noise_on_the_cpu() -> None:
    assert generator(7).device.type == "cpu"
    first, again, other = (torch.randn(4, generator=generator(seed)) for seed in (7, 7, 8))
    assert (first == again).all() and (first != other).any()
