import base64
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from handlers.config import HandlerConfig
from handlers.engine.finishing import HEADROOM
from handlers.errors import InvalidRequest, RequestError, TooLarge
from handlers.imaging.output import usual_base64_bytes
from handlers.request.fields import GenerationRequest, ModelDefaults, Variation, parse_request, read_fields
from handlers.request.reader import MAX_SEED
from handlers.request.samplers import Sampler
from tests.support.samples import b64, bomb, file_bytes, half_mask, sample_image

CONFIG = HandlerConfig()
DEFAULTS = ModelDefaults(20, 3.5, 64, 64)
INIT = {"prompt": "x", "init_image": b64(sample_image())}
MASKING = INIT | {"mask_image": b64(half_mask())}


def parse(task: str = "txt2img", /, **fields: Any) -> GenerationRequest:
    return parse_request(task, {"prompt": "x"} | fields, CONFIG, DEFAULTS)


def test_defaults_are_the_models_own() -> None:
    request = parse()
    assert (request.num_inference_steps, request.guidance_scale) == (20, 3.5)
    assert (request.width, request.height, request.num_outputs, request.eta) == (64, 64, 1, 0.0)
    assert request.negative_prompt == "" and request.clip_skip is None


def test_a_model_of_one_size_generates_at_it_and_answers_at_the_size_asked_for() -> None:
    defaults = ModelDefaults(20, 3.5, 128, 128, 128)
    request = parse_request("txt2img", {"prompt": "x", "width": 512, "height": 256}, CONFIG, defaults)
    assert (request.width, request.height, request.answer_size) == (128, 64, (512, 256))
    request = parse_request("img2img", INIT, CONFIG, defaults)
    assert (request.width, request.height, request.answer_size) == (128, 128, (64, 64))


def test_strength_is_0_7_unless_given() -> None:
    assert parse("img2img", **INIT).strength == 0.7


def test_fields_of_a_form_and_of_json_read_alike() -> None:
    form = parse(
        seed=b"7", num_outputs=b"2", guidance_scale=b"1.5", eta=b" 0.25 ", width=b"128", num_inference_steps=b"3.0"
    )
    json = parse(seed=7, num_outputs=2, guidance_scale=1.5, eta=0.25, width=128, num_inference_steps=3.0)
    assert form == json
    assert form.seed == 7 and form.width == 128 and form.num_inference_steps == 3


def test_blank_numbers_count_as_absent() -> None:
    assert parse(num_outputs=b"", guidance_scale=b" ", width="", seed=9) == parse(seed=9)


def test_an_empty_prompt_is_allowed_and_a_missing_one_is_not() -> None:
    assert parse(prompt=b"").prompt == ""
    with pytest.raises(InvalidRequest, match="prompt is missing"):
        parse_request("txt2img", {}, CONFIG, DEFAULTS)


def test_no_seed_and_seed_0_generate_one() -> None:
    seeds = {parse(seed=value).seed for value in (None, 0, b"0", b"", 0.0) for _ in range(3)}
    assert len(seeds) > 1 and all(1 <= seed < 2**32 for seed in seeds)
    assert parse(seed=str(MAX_SEED)).seed == MAX_SEED


def test_a_variation_has_a_seed_for_each_image_and_the_images_share_theirs() -> None:
    request = parse(seed=5, variation_seed="9", variation_strength="0.25", num_outputs=2)
    assert [request.seed_of(index) for index in (0, 1)] == [5, 5]
    assert [request.variation_of(index) for index in (0, 1)] == [Variation(9, 0.25), Variation(10, 0.25)]
    random = {parse(variation_strength=1, variation_seed=seed).variation for seed in (None, -1, 0) for _ in range(2)}
    assert len(random) > 1


def test_without_a_variation_strength_each_image_has_its_own_seed() -> None:
    assert parse(seed=5, variation_strength=0, variation_seed=-1) == parse(seed=5)
    request = parse(seed=5, variation_seed=9)
    assert (request.variation_of(1), request.seed_of(1)) == (None, 6)
    assert request.warnings[0].startswith("variation_seed has no effect at variation_strength 0")


def test_unknown_fields_are_ignored() -> None:
    assert parse(seed=1, sampler="k_lms") == parse(seed=1)


def test_what_belongs_to_another_task_is_named_unless_it_asks_for_nothing() -> None:
    sent = {"init_image": "x", "mask_image": "x", "mask_blur": 4, "strength": 0.3, "fit": "crop"}
    warning = "init_image, mask_image, fit: without effect on txt2img."
    assert parse(seed=1, **sent) == replace(parse(seed=1), warnings=(warning,))
    # some clients send every field to every route
    for nothing in ("", " ", b"", None, 0, False, "False", b"false", "None"):
        assert parse(seed=1, init_image=nothing, mask_image=nothing, patch=nothing, strength=0.7) == parse(seed=1)
    masked = parse("img2img", prompt="x", init_image=b64(sample_image()), mask_image="x", patch=True)
    assert masked.warnings == ("mask_image, patch: without effect on img2img.",)


def test_img2img_takes_the_images_size_and_names_another_one() -> None:
    image = b64(sample_image(500, 333))
    request = parse("img2img", prompt="x", init_image=image, width=77)
    assert (request.width, request.height) == (504, 336)
    assert request.init_image is not None and request.init_image.size == (500, 333)
    assert "width: without effect on init_image, which has 500 x 333: fit=" in request.warnings[0]
    fitted = parse("img2img", prompt="x", init_image=image, width=500, height=333, fit="stretch")
    assert fitted.answer_size == (500, 333)  # with or without `fit`, its own size may be any
    # the image's own size, the model's own, which some clients always send, or none
    for side in ({"width": "500", "height": 333}, {"width": 64, "height": 64}, {"width": 0, "height": "-1"}, {}):
        assert not parse("img2img", prompt="x", init_image=image, **side).warnings
    with pytest.raises(InvalidRequest, match="width must be a whole number"):
        parse("img2img", prompt="x", init_image=image, width="abc")


def test_an_image_may_come_as_a_file() -> None:
    assert parse("img2img", prompt="x", init_image=file_bytes(sample_image())).init_image is not None


@pytest.mark.parametrize(
    ("task", "fields", "sentence"),
    [
        ("txt2img", {"seed": -2}, "seed must be a whole number from 1 to"),
        ("txt2img", {"seed": 2**53}, "seed must be a whole number from 1 to"),
        ("txt2img", {"seed": "1" * 5000}, "seed must be"),
        ("txt2img", {"seed": "1_000"}, "seed must be"),
        ("txt2img", {"seed": "٣"}, "seed must be"),
        ("txt2img", {"seed": True}, "seed must be a number"),
        ("txt2img", {"seed": [1]}, "seed must be a number"),
        ("txt2img", {"seed": MAX_SEED, "num_outputs": 2}, "seed \\+ num_outputs"),
        ("txt2img", {"variation_seed": -2}, "variation_seed must be a whole number from 1 to"),
        ("txt2img", {"variation_seed": MAX_SEED, "num_outputs": 2}, "variation_seed \\+ num_outputs"),
        ("txt2img", {"variation_strength": 1.1}, "variation_strength must be a number of at least 0 and at most 1"),
        ("img2img", INIT | {"fit": "crop", "width": 64}, "fit=crop needs the size .*: send height."),
        ("img2img", INIT | {"fit": "pad"}, "fit=pad needs the size .*: send width and height."),
        ("img2img", INIT | {"fit": "stretch", "width": 64, "height": 65}, "height must be a multiple of 8 .* is 64"),
        ("masking", MASKING | {"fit": "cover"}, "fit must be one of stretch, crop, pad, not 'cover'"),
        ("txt2img", {"num_outputs": 0}, "num_outputs must be a whole number from 1 to 8"),
        ("txt2img", {"num_outputs": 9}, "num_outputs must be a whole number from 1 to 8"),
        ("txt2img", {"num_outputs": 1.5}, "num_outputs must be"),
        ("txt2img", {"num_inference_steps": 0}, "num_inference_steps must be a whole number from 1 to 250"),
        ("txt2img", {"num_inference_steps": "many"}, "not 'many'"),
        ("txt2img", {"guidance_scale": -0.1}, "guidance_scale must be a number of at least 0"),
        ("txt2img", {"guidance_scale": "nan"}, "guidance_scale must be a number"),
        ("txt2img", {"guidance_scale": "inf"}, "guidance_scale must be a number"),
        ("txt2img", {"guidance_scale": "1e999"}, "guidance_scale must be a number"),
        ("txt2img", {"guidance_scale": 10**400}, "guidance_scale must be a number"),
        ("txt2img", {"eta": 1.01}, "eta must be a number of at least 0 and at most 1"),
        ("txt2img", {"clip_skip": -1}, "clip_skip must be a whole number from 0 to 12, not -1"),
        ("txt2img", {"clip_skip": 13}, "clip_skip must be a whole number from 0 to 12, not 13"),
        ("txt2img", {"width": 77}, "width must be a multiple of 8 from 64 to 1024, not 77: the nearest is 80"),
        ("txt2img", {"height": 9999}, "the nearest is 1024"),
        ("txt2img", {"height": -8}, "the nearest is 64"),
        ("txt2img", {"prompt": b"\xff"}, "prompt is not valid UTF-8"),
        ("txt2img", {"prompt": "\ud800"}, "prompt is not valid UTF-8"),
        ("txt2img", {"prompt": "a\0b"}, "NUL"),
        ("txt2img", {"prompt": 3}, "prompt must be text"),
        ("txt2img", {"prompt": "x" * 10_001}, "prompt is longer than 10000 characters: shorten it."),
        ("txt2img", {"negative_prompt": b"x" * 1_000_000}, "negative_prompt is longer than 10000"),
        ("txt2img", {"width": "abc"}, "width must be a multiple of 8 from 64 to 1024, not 'abc'"),
        ("txt2img", {"width": 100.5}, "the nearest is 104"),
        ("txt2img", {"width": 10**400}, "the nearest is 1024"),
        ("img2img", {}, "init_image is missing"),
        ("img2img", {"init_image": ""}, "init_image is empty"),
        ("img2img", {"init_image": 5}, "init_image must be an image as base64"),
        ("img2img", {"init_image": "aGVsbG8="}, "init_image is not an image file that is known here: save it as PNG"),
        ("img2img", INIT | {"strength": 0}, "strength must be a number above 0 and at most 1"),
        ("img2img", INIT | {"strength": 1.1}, "strength must be"),
        ("img2img", INIT | {"strength": 0.1, "num_inference_steps": 9}, "leaves no step to run"),
        ("masking", INIT, "mask_image is missing"),
        ("masking", INIT | {"mask_image": "%%%"}, "mask_image is not valid base64"),
    ],
)
def test_each_wrong_field_has_its_sentence(task: str, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse(task, **fields)


def test_the_largest_request_is_taken() -> None:
    assert parse(width=1024, height=1024, num_outputs=8).num_outputs == 8


def test_limits_are_checked_before_the_work_that_they_bound() -> None:
    with pytest.raises(TooLarge, match="init_image is larger than 33554432 bytes"):
        parse("img2img", init_image="A" * 45_000_000)
    with pytest.raises(TooLarge, match="pixels"):
        parse("img2img", init_image=b64(bomb()))


def test_an_answer_that_could_be_too_large_is_refused_beforehand() -> None:
    config = HandlerConfig(max_response_bytes=2_000_000)
    with pytest.raises(InvalidRequest, match="8 images of 512 x 512 pixels"):
        parse_request("txt2img", {"prompt": "x", "width": 512, "height": 512, "num_outputs": 8}, config, DEFAULTS)


def test_the_largest_image_that_is_taken_fits_into_an_answer() -> None:
    assert usual_base64_bytes(10_000, CONFIG.max_image_pixels // 10_000, "png") <= CONFIG.max_response_bytes
    assert CONFIG.max_response_bytes - HEADROOM >= 24_000_000 * 3 * 4 / 3  # without any compression
    with pytest.raises(TooLarge, match="too large for an answer of 1000 bytes: ask for output_format=jpeg"):
        parse_request("img2img", INIT, HandlerConfig(max_response_bytes=1000), DEFAULTS)


def test_fields_arrive_as_bytes_as_json_or_already_parsed() -> None:
    assert read_fields({"body": bytearray(b"prompt=x")}, "application/x-www-form-urlencoded", 9) == {"prompt": b"x"}
    assert read_fields({"body": {"prompt": "x"}}, "", 9) == {"prompt": "x"}
    assert read_fields({"prompt": bytearray(b"x"), "seed": bytearray(b"1")}, "", 9) == {"prompt": b"x", "seed": b"1"}
    assert read_fields({}, "", 9) == {}


def test_a_scheduler_is_one_of_those_that_fit_the_model() -> None:
    offered = {"DDIMScheduler": ["timestep_spacing"], "PNDMScheduler": []}
    defaults = ModelDefaults(scheduler="PNDMScheduler")

    def chosen(name: str) -> Sampler | None:
        return parse_request("txt2img", {"prompt": "x", "scheduler": name}, CONFIG, defaults, offered).sampler

    assert chosen("DDIMScheduler") == Sampler("DDIMScheduler", {}, "DDIM")
    assert chosen("ddim_trailing") == Sampler("DDIMScheduler", {"timestep_spacing": "trailing"}, "DDIM", "Trailing")
    assert chosen("") is None and chosen("PNDMScheduler") is None  # the model's own
    with pytest.raises(InvalidRequest, match="not 'Euler': these are there: DDIM, PLMS, DDIMScheduler, PNDM"):
        chosen("Euler")


def test_a_near_scheduler_is_a_warning() -> None:
    offered = {"DDIMScheduler": ["timestep_spacing"]}
    request = parse_request("txt2img", {"prompt": "x", "scheduler": "DDIM CFG++"}, CONFIG, ModelDefaults(), offered)
    assert request.warnings == ("The scheduler DDIM CFG++ is not in diffusers: DDIM was used, the nearest.",)


def test_every_error_has_a_status_of_the_contract() -> None:
    assert {error.status for error in RequestError.__subclasses__()} == {400, 413, 500, 504, 507}


@pytest.mark.parametrize(
    ("task", "fields", "sentence"),
    [
        ("txt2img", {"guidance_scale": "7,5"}, "not '7,5': write it with a point, 7.5."),
        ("img2img", INIT | {"strength": "0,7"}, "write it with a point, 0.7."),
        ("img2img", INIT | {"strength": "60%"}, "not '60%': write it as 0.6."),
        ("img2img", INIT | {"strength": "62,5 %"}, "write it as 0.625."),
        ("txt2img", {"num_inference_steps": "7,5"}, "from 1 to 250, not '7,5': write it in digits alone."),
        ("txt2img", {"num_outputs": "60%"}, "from 1 to 8, not '60%': write it in digits alone."),
        ("txt2img", {"width": "512,0"}, "from 64 to 1024, not '512,0': write it in digits alone."),
        ("txt2img", {"seed": "1,5"}, "0 or -1 for a random one, not '1,5': write it in digits alone."),
        ("txt2img", {"seed": "x"}, "from 1 to 9007199254740991, or 0 or -1 for a random one, not 'x'."),
        ("txt2img", {"seed": -2}, "or 0 or -1 for a random one, not -2."),
        ("txt2img", {"preview": 2}, "preview must be true or false, not '2'."),
    ],
)
def test_a_sentence_says_how_to_mend_it(task: str, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(sentence)):
        parse(task, **fields)


@pytest.mark.parametrize("seed", [0, -1, "", " ", "0", "-1", -1.0])
def test_a_seed_of_nothing_is_random(seed: Any) -> None:
    assert parse("txt2img", seed=seed).seed != parse("txt2img", seed=seed).seed


@pytest.mark.parametrize(
    ("value", "wanted"), [(1, True), (0, False), (True, True), (1.0, True), (0.5, None), ("yes", True)]
)
def test_a_flag_may_be_a_number_in_json(value: Any, wanted: bool | None) -> None:
    if wanted is None:
        with pytest.raises(InvalidRequest, match="preview must be true or false"):
            parse("txt2img", preview=value)
    else:
        assert parse("txt2img", preview=value).preview is wanted


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"8BPS\x00\x01", "a PSD file"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG file"),
        (b"\x00\x00\x00\x18ftypheic", "a HEIC file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\x00\x01\x02\x03\xff\xfe", "not an image file that is known here"),
    ],
)
@pytest.mark.parametrize("encode", [bytes, base64.b64encode])
def test_a_file_of_another_kind_is_named(start: bytes, kind: str, encode: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"init_image is {kind}: save it as PNG.")):
        parse("img2img", init_image=encode(start + bytes(200)))
