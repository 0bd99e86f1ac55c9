"""The fields of a second pass, and what a file says of it."""

from typing import Any

import pytest

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.regions import Crop
from handlers.imaging.upscaling import UPSCALERS
from handlers.request.fields import GenerationRequest, ModelDefaults, parse_request
from handlers.request.hires import Hires
from handlers.request.parameters import parameters_text

DEFAULTS = ModelDefaults(20, 7.5, 512, 512, scheduler="PNDMScheduler")
SCHEDULERS = {"DDIMScheduler": ["timestep_spacing"], "PNDMScheduler": []}
LARGE = {"hires_upscaler": "Latent", "hires_width": "1024", "hires_height": "768"}


def parse(defaults: ModelDefaults = DEFAULTS, config: HandlerConfig | None = None, **fields: Any) -> GenerationRequest:
    fields = {"prompt": "a house", "seed": 7} | fields
    return parse_request("txt2img", fields, config or HandlerConfig(), defaults, SCHEDULERS)


def test_a_second_pass_is_as_the_first_one_unless_its_fields_say_otherwise() -> None:
    request = parse(**LARGE, negative_prompt="dull", scheduler="DDIM", guidance_scale=3)
    crop = Crop.whole((1024, 768), (1024, 768))
    assert request.sampler is not None and request.sampler.name == "DDIM"
    assert request.hires == Hires("Latent", crop, 20, 0.7, "a house", "dull", 3.0, request.sampler)
    assert request.crops == (Crop.whole((512, 512), (512, 512)),)
    assert (request.answer_size, request.width, request.height) == ((1024, 768), 1024, 768)
    own = {
        "hires_steps": 9, "hires_strength": 0.4, "hires_prompt": "a hut", "hires_negative_prompt": "red",
        "hires_guidance_scale": 5, "hires_scheduler": "PNDMScheduler",
    }  # fmt: skip
    assert parse(**LARGE, **own, scheduler="DDIM").hires == Hires("Latent", crop, 9, 0.4, "a hut", "red", 5.0, None)
    assert parse(**LARGE, **dict.fromkeys(own, "")) == parse(**LARGE)
    assert not request.warnings


@pytest.mark.parametrize("name", UPSCALERS)
def test_names_of_upscalers_have_any_case(name: str) -> None:
    hires = parse(**LARGE | {"hires_upscaler": f" {name.upper()} "}).hires
    assert hires is not None and hires.upscaler == name


def test_without_an_upscaler_there_is_one_pass_and_a_warning() -> None:
    assert parse(hires_upscaler="").hires is None and not parse(hires_upscaler="").warnings
    request = parse(hires_width=1024, hires_steps=3)
    assert request.hires is None and request.answer_size == (512, 512)
    assert request.warnings == ("hires_width, hires_steps without hires_upscaler: there was no second pass.",)


def test_a_model_of_one_size_is_warned_of() -> None:
    request = parse(ModelDefaults(20, 7.5, 128, 128, drawn_size=128), **LARGE)
    assert request.hires is not None and request.hires.crop.size == (128, 96)
    assert request.answer_size == (1024, 768) and "128 pixels" in request.warnings[0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hires_upscaler": "ESRGAN_4x"}, "hires_upscaler must be one of None, Lanczos, .*, not 'ESRGAN_4x'"),
        ({"hires_upscaler": "Latent"}, "needs the size of the second pass: send hires_width and hires_height."),
        (LARGE | {"hires_height": ""}, "send hires_height."),
        (LARGE | {"hires_width": 2048}, "hires_width must be a multiple of 8 from 64 to 1024, not 2048"),
        (LARGE | {"hires_steps": 251}, "hires_steps must be a whole number from 1 to 250"),
        (LARGE | {"hires_strength": 0}, "hires_strength must be a number above 0 and at most 1"),
        (LARGE | {"hires_steps": 2, "hires_strength": 0.4}, "hires_strength 0.4 of 2 hires_steps leaves no step"),
        (LARGE | {"hires_scheduler": "Euler"}, "hires_scheduler must be the model's own"),
        (LARGE | {"hires_prompt": "x" * 10_001}, "hires_prompt is longer than 10000"),
        (LARGE | {"num_outputs": 8, "output_format": "png"}, "8 images of 1024 x 768 pixels could exceed"),
    ],
)
def test_each_wrong_field_has_its_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse(config=HandlerConfig(max_response_bytes=3_000_000), **fields)


def text(**fields: Any) -> str:
    return parameters_text(parse(**fields), 0, "a model", DEFAULTS.scheduler).splitlines()[-1]


def test_the_parameters_are_as_the_web_ui_writes_them() -> None:
    assert text(**LARGE | {"hires_height": 1024}, num_inference_steps=30) == (
        "Steps: 30, Sampler: PLMS, CFG scale: 7.5, Seed: 7, Size: 512x512, Model: a model, Denoising strength: 0.7, "
        "Hires upscale: 2, Hires steps: 30, Hires upscaler: Latent, Version: sd-api-server"
    )
    own = {"hires_prompt": "a hut, red", "hires_negative_prompt": "dull", "hires_guidance_scale": 5}
    assert text(**LARGE, **own, hires_scheduler="ddim trailing").endswith(
        "Hires resize: 1024x768, Hires steps: 20, Hires upscaler: Latent, Hires sampler: DDIM, "
        'Hires schedule type: Trailing, Hires prompt: "a hut, red", Hires negative prompt: dull, Hires CFG Scale: 5.0, '
        "Version: sd-api-server"
    )
