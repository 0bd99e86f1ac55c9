"""Fields of images and masks, as a request has them: what is taken, refused, and warned of."""

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, TooLarge
from handlers.imaging.fitting import FITS, fitted
from handlers.imaging.regions import Crop
from handlers.request.fields import GenerationRequest, ModelDefaults, parse_request
from handlers.request.parameters import parameters_text
from tests.support.cases import case
from tests.support.samples import b64, file_bytes, half_mask, sample_image

DEFAULTS = ModelDefaults(20, 7.5, 512, 512, scheduler="PNDMScheduler")
INIT = {"init_image": file_bytes(sample_image())}
MASKED = INIT | {"mask_image": file_bytes(half_mask())}
HOLES = sample_image()
HOLES.putalpha(half_mask())


def parse(task: str = "masking", /, config: HandlerConfig | None = None, **fields: Any) -> GenerationRequest:
    return parse_request(task, {"prompt": "x", "seed": 7} | fields, config or HandlerConfig(), DEFAULTS)


def test_a_photo_with_a_small_mask_is_generated_as_a_crop() -> None:
    request = parse(init_image=case("photo_3000x2000.jpg"), mask_image=case("mask_300px.png"))
    assert request.crops == (Crop((1275, 925, 1725, 1375), (512, 512), (1350, 1000, 1650, 1300)),)
    assert (request.width, request.height, request.answer_size) == (512, 512, (3000, 2000))
    whole = parse(init_image=case("photo_3000x2000.jpg"), mask_image=case("mask_300px.png"), mask_padding=-1)
    assert whole.crops[0].box == (0, 0, 3000, 2000) and (whole.width, whole.height) == (1024, 680)


@pytest.mark.parametrize("task", ["txt2img", "img2img"])
def test_other_tasks_generate_the_whole_image(task: str) -> None:
    request = parse(task, width=64, height=64, **INIT)
    assert request.crops == (Crop.whole((64, 64), (64, 64)),)


@pytest.mark.parametrize("fit", FITS)
def test_init_image_and_mask_are_fitted_together(fit: str) -> None:
    photo, mask = sample_image(300, 200), half_mask(300, 200)
    size = {"fit": fit, "width": 128, "height": 192}
    request = parse("img2img", init_image=file_bytes(photo), **size)
    assert request.init_image is not None
    assert request.init_image.size == request.answer_size == (request.width, request.height) == (128, 192)
    assert np.array_equal(request.init_image.image, fitted(photo, (128, 192), fit))
    # the mask may be smaller, and its pixels are counted once it is fitted
    small = {"init_image": file_bytes(photo), "mask_image": file_bytes(mask.resize((150, 100))), "mask_padding": -1}
    masking = parse(**small, **size)
    assert masking.init_image == request.init_image and masking.answer_size == (128, 192)
    assert masking.mask_image is not None and masking.mask_image.size == (128, 192)
    assert np.asarray(masking.mask_image)[96, [8, 120]].tolist() == [255, 0]


def test_holes_are_fitted_with_their_image() -> None:
    request = parse(init_image=file_bytes(HOLES), fit="crop", width=64, height=128)
    assert request.fills_holes and request.mask_image is not None
    assert np.asarray(request.mask_image)[64, [4, 60]].tolist() == [0, 255]


def test_the_mask_is_refined_before_it_is_planned_with() -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (30, 30, 34, 34))
    request = parse(**INIT, mask_image=file_bytes(mask), mask_grow=3, mask_blur=0, patch="true")
    assert request.mask_image is not None and request.mask_image.getbbox() == (27, 27, 37, 37)
    assert request.crops[0].region == (27, 27, 37, 37) and request.answer_size == (10, 10)
    blurred = parse(**INIT, mask_image=file_bytes(mask), mask_blur=2).mask_image
    assert blurred is not None and 30 < np.asarray(blurred).max() < 255


def test_an_inverted_mask_keeps_what_it_would_replace() -> None:
    small = Image.new("L", (64, 64), 255)
    small.paste(0, (30, 30, 34, 34))
    request = parse(**INIT, mask_image=file_bytes(small), mask_invert=True, mask_grow=3)
    assert request.mask_image is not None and request.mask_image.getbbox() == (27, 27, 37, 37)
    holes = parse(init_image=file_bytes(HOLES), mask_invert="true").mask_image
    assert holes is not None and np.array_equal(holes, half_mask())


def test_holes_are_the_mask_if_there_is_no_other() -> None:
    for blank in ({}, {"mask_image": ""}, {"mask_image": b""}):
        request = parse(init_image=file_bytes(HOLES), **blank)
        assert request.fills_holes and request.mask_image is not None
        assert np.array_equal(request.mask_image, Image.eval(half_mask(), lambda value: 255 - value))
    assert not parse(init_image=file_bytes(HOLES), mask_image=file_bytes(half_mask())).fills_holes


def test_an_opaque_image_needs_a_mask() -> None:
    for init in (sample_image(), sample_image().convert("RGBA")):
        with pytest.raises(InvalidRequest, match="mask_image is missing, and init_image has no transparent part"):
            parse(init_image=file_bytes(init))


@pytest.mark.parametrize("fields", [{}, {"patch": True}, {"mask_padding": -1}])
def test_a_mask_that_selects_nothing_is_warned_of(fields: dict[str, Any]) -> None:
    request = parse(**INIT, mask_image=file_bytes(Image.new("L", (64, 64))), **fields)
    assert request.crops == () and request.warnings[0].startswith("The mask selects nothing")


def test_a_fill_without_effect_is_warned_of() -> None:
    (warning,) = parse(**MASKED, mask_fill="noise", strength=1).warnings
    assert warning.startswith("mask_fill has no effect at strength 1")
    for fields in ({"mask_fill": "noise", "strength": 0.99}, {"strength": 1}):
        assert not parse(**MASKED, **fields).warnings


def test_a_mask_in_the_stored_raster_is_of_another_shape() -> None:
    with pytest.raises(InvalidRequest, match="mask_image has 240 x 320 pixels and init_image, upright, 320 x 240"):
        parse(init_image=case("exif6.jpg"), mask_image=case("exif6_mask_in_stored_raster.png"))
    request = parse(init_image=case("exif6.jpg"), mask_image=case("exif6_mask_upright.png"))
    assert request.answer_size == (320, 240)


def test_warnings_of_both_files_are_passed_on() -> None:
    cut = file_bytes(sample_image(), "JPEG")[:-3]
    request = parse(init_image=cut, mask_image=file_bytes(half_mask(), "JPEG")[:-2])
    assert [warning.partition(" ")[0] for warning in request.warnings] == ["init_image", "mask_image"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mask_mode": "white"}, "mask_mode must be one of auto, luminance, alpha, transparent, alpha_or_"),
        ({"mask_fill": "latent"}, "mask_fill must be one of original, blur, noise, neutral, not 'latent'."),
        ({"mask_padding": -2}, "mask_padding must be a whole number from -1 to 10000, not -2."),
        ({"mask_grow": 257}, "mask_grow must be a whole number from 0 to 256, not 257."),
        ({"mask_blur": -1}, "mask_blur must be a whole number from 0 to 256, not -1."),
        ({"mask_blur": 1.5}, "mask_blur must be a whole number from 0 to 256, not 1.5."),
        ({"patch": "perhaps"}, "patch must be true or false, not 'perhaps'."),
        ({"output_format": "gif"}, "output_format must be one of png, jpeg, webp, jpg, not 'gif'."),
        ({"output_quality": 0}, "output_quality must be a whole number from 1 to 100, not 0."),
    ],
)
def test_each_wrong_field_has_its_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(sentence)):
        parse(**MASKED, **fields)


def test_blank_fields_are_their_defaults() -> None:
    names = (
        "mask_mode",
        "mask_fill",
        "mask_padding",
        "mask_grow",
        "mask_blur",
        "patch",
        "output_format",
        "output_quality",
    )
    blank, absent = parse(**MASKED, **dict.fromkeys(names, "")), parse(**MASKED)
    assert blank == absent
    defaults = {
        "mask_mode": "auto", "mask_fill": "original", "mask_grow": 0, "mask_blur": 0, "patch": False,
        "output_format": "png", "output_quality": 90,
    }  # fmt: skip
    assert absent == parse(**MASKED, **defaults)


def test_what_would_hardly_fit_is_refused_beforehand_with_advice() -> None:
    config = HandlerConfig(max_response_bytes=2_000_000)
    large = file_bytes(Image.new("RGB", (1500, 1000)))
    with pytest.raises(TooLarge, match=r"1500 x 1000 pixels is too large .*output_format=jpeg or, .* patch=true"):
        parse("img2img", config, init_image=large)
    assert parse("img2img", config, init_image=large, output_format="jpeg").output_format == "jpeg"
    mask = Image.new("L", (1500, 1000))
    mask.paste(255, (100, 100, 200, 200))
    assert parse("masking", config, init_image=large, mask_image=file_bytes(mask), patch="1").answer_size == (100, 100)
    with pytest.raises(InvalidRequest, match="ask for at most 2 at a time, for a smaller image or"):
        parse("img2img", config, init_image=large, output_format="webp", num_outputs=3)


def test_a_format_has_its_longest_side() -> None:
    wide = file_bytes(Image.new("RGB", (16_400, 10)))
    with pytest.raises(InvalidRequest, match=r"output_format webp can have at most 16383 pixels a side: ask for png."):
        parse("img2img", init_image=wide, output_format="webp")
    assert parse("img2img", init_image=wide, output_format="jpeg").answer_size == (16_400, 10)


def test_a_photo_of_50_million_pixels_is_taken() -> None:
    photo, mask = Image.new("RGB", (8000, 6250), (90, 120, 60)), Image.new("L", (8000, 6250))
    mask.paste(255, (4000, 3000, 4100, 3080))
    request = parse(init_image=b64(photo, "JPEG"), mask_image=b64(mask))
    assert request.crops[0].size == (512, 512) or request.crops[0].size[0] > request.crops[0].size[1]
    assert request.answer_size == (8000, 6250)
    with pytest.raises(TooLarge, match="8000 x 6251 pixels; this server takes at most 50000000 in all"):
        parse(init_image=b64(Image.new("L", (8000, 6251)), "JPEG"), mask_image=b64(mask))


def text(request: GenerationRequest, index: int = 0, model: str = "a model") -> str:
    return parameters_text(request, index, model, DEFAULTS.scheduler)


def test_the_parameters_are_as_the_web_ui_writes_them() -> None:
    request = parse("txt2img", prompt="a cat,\nsitting", negative_prompt="blurred", num_inference_steps=20, seed=7)
    assert text(request, 2) == (
        "a cat,\nsitting\nNegative prompt: blurred\n"
        "Steps: 20, Sampler: PLMS, CFG scale: 7.5, Seed: 9, Size: 512x512, Model: a model, "
        "Version: sd-api-server"
    )
    assert 'Size: 512x512, Model: "org/a: b", Version: ' in text(parse("txt2img", prompt=""), model="org/a: b")
    masking = text(parse(**MASKED, strength=0.75, mask_blur=4))
    assert masking.startswith("x\nSteps: ") and "Denoising strength: 0.75, Mask blur: 4, Version: " in masking
    varied = text(parse("txt2img", seed=7, variation_seed=3, variation_strength=0.5), 1)
    assert "Seed: 7, " in varied and "Variation seed: 4, Variation seed strength: 0.5, Version: " in varied
    skipping = text(parse("txt2img", prompt="", clip_skip=1))
    assert ", Clip skip: 2, Version: " in skipping  # it counts from 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mask_mode": "alpha"}, "has no transparent part, so with mask_mode=alpha all of the image is replaced."),
        (
            {"mask_image": b64(Image.new("L", (64, 64), 29))},
            "The mask is faint: what it replaces shows through by 89 %.",
        ),
        ({"width": "512"}, "width: without effect on init_image, which has 64 x 64: fit="),
        ({"output_quality": "80"}, "output_quality has no effect on PNG, which loses nothing."),
        ({"hires_upscaler": "Latent", "hires_steps": 2}, "hires_steps, hires_upscaler: without effect on masking."),
    ],
)
def test_what_hardly_anybody_means_is_a_warning(fields: dict[str, Any], sentence: str) -> None:
    images = {"init_image": b64(sample_image()), "mask_image": b64(half_mask())}
    assert any(sentence in warning for warning in parse(**images | fields).warnings)


@pytest.mark.parametrize(("text", "format"), [("jpg", "jpeg"), ("JPEG", "jpeg"), ("PNG", "png"), ("WebP", "webp")])
def test_formats_by_their_usual_spellings(text: str, format: str) -> None:
    assert parse("txt2img", output_format=text).output_format == format
