"""Masked images from end to end in one process: a stand-in for the pipeline, and small models with random weights."""

import base64
import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.config import HandlerConfig
from handlers.engine.finishing import Provenance
from handlers.engine.generation import Generation, GenerationState
from handlers.engine.parsing import IncomingRequest
from handlers.engine.shared import Shared
from handlers.engine.timings import Timings
from handlers.hardware.memory import Memory
from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.loading import ServedPipeline
from handlers.request.fields import ModelDefaults, parse_request
from handlers.wire import Failed, RequestHead
from tests.support import tiny_models
from tests.support.cases import as_seen, case, case_image, profile_of
from tests.support.generations import SIDE, Pool, advance, message
from tests.support.jobs import CPU, generated_alone, load
from tests.support.samples import file_bytes, half_mask, sample_image

CONFIG = HandlerConfig()


class Echo:
    """Gives its init image back, lighter where the mask is: what is not the model's own in an answer can be seen."""

    vae_scale_factor = 8

    def __init__(self, flagged: bool = False) -> None:
        self.flagged = flagged
        self.seen: list[dict[str, Any]] = []
        self.unet, self.num_timesteps = object(), 1
        self.vae = SimpleNamespace(dtype=torch.float32, encode=None, decode=None)
        self.scheduler = SimpleNamespace(set_timesteps=lambda *_, **__: None)

    def __call__(
        self, prompt: str, image: Image.Image, strength: float, generator: Any, mask_image: Image.Image | None = None
    ) -> Any:
        self.seen.append({"seed": generator.initial_seed(), "image": image, "mask": mask_image})
        self.vae.decode(torch.zeros(1))
        result = image
        if mask_image is not None:
            result = Image.composite(Image.new("RGB", image.size, (250, prompt == "b" and 250, 90)), image, mask_image)
        if self.flagged:
            result = Image.new("RGB", image.size)
        return SimpleNamespace(images=[result], nsfw_content_detected=[self.flagged])


class Answered:
    """A request's answer."""

    def __init__(self, task: str, pipeline: Echo | None = None, config: HandlerConfig = CONFIG, **fields: Any) -> None:
        self.pipeline = pipeline or Echo()
        data = {"prompt": b"x", "seed": b"7"} | {
            name: value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()
        }
        served = ServedPipeline("a model", self.pipeline, ModelDefaults(4, 7.5, 512, 512), (), dict)
        pool = Pool()
        shared = Shared(config, Memory(CPU, (SIDE // 8) ** 2), pool, Timings(), provenance=Provenance(mark=True))
        self.generation = Generation(IncomingRequest(task, data, RequestHead(task)), served, shared)
        self.generation.start()
        while self.generation.state is not GenerationState.ENDED:
            pool.run_all()
            self.generation.collect()
            for slot in list(self.generation.slots):
                advance(slot)
        said = message(self.generation)
        self.error = said if isinstance(said, Failed) else None
        self.body = {} if isinstance(said, Failed) else json.loads(said.body)  # type: ignore[union-attr]

    def image(self, index: int = 0) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.body["images"][index]["base64"])))


def spots(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (1600, 1200)) -> bytes:
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return file_bytes(mask)


PHOTO = sample_image(1600, 1200)
TWO = ((100, 100, 160, 150), (1400, 1000, 1450, 1050))


def test_each_image_has_a_job_for_each_crop_with_its_own_seed() -> None:
    answer = Answered("masking", init_image=file_bytes(PHOTO), mask_image=spots(*TWO), num_outputs=2)
    assert [seen["seed"] for seen in answer.pipeline.seen] == [7, 7, 8, 8]
    for seen in answer.pipeline.seen:
        assert abs(seen["image"].width * seen["image"].height - 512 * 512) < 10_000
    assert [image["seed"] for image in answer.body["images"]] == [7, 8] and "warnings" not in answer.body
    mask = np.asarray(Image.open(io.BytesIO(spots(*TWO))))
    for index in (0, 1):
        image = np.asarray(answer.image(index))
        assert np.array_equal(image[mask == 0], np.asarray(PHOTO)[mask == 0])
        assert np.abs(image[mask == 255].astype(int) - (250, 0, 90)).max() <= 10  # Lanczos rings at the mask's edge


def test_a_patch_comes_with_its_box() -> None:
    answer = Answered("masking", init_image=file_bytes(PHOTO), mask_image=spots(*TWO), patch="true", num_outputs=2)
    assert [image["box"] for image in answer.body["images"]] == [[100, 100, 1350, 950]] * 2
    patch = answer.image()
    assert (patch.mode, patch.size) == ("RGBA", (1350, 950))
    opaque = Answered("masking", init_image=file_bytes(PHOTO), mask_image=spots(TWO[0]), patch="true").image()
    assert (opaque.mode, opaque.getchannel("A").getextrema()) == ("RGBA", (255, 255))
    assert patch.getchannel("A").histogram()[255] == 60 * 50 + 50 * 50
    assert "box" not in Answered("masking", init_image=file_bytes(PHOTO), mask_image=spots(*TWO)).body["images"][0]


def test_a_mask_that_selects_nothing_gives_the_image_back() -> None:
    answer = Answered("masking", init_image=file_bytes(PHOTO), mask_image=spots(), num_outputs=2)
    assert not answer.pipeline.seen and len(answer.body["images"]) == 2
    assert np.array_equal(answer.image(1), PHOTO) and answer.image().info.keys() & {"parameters", "xmp"} == set()
    (warning,) = answer.body["warnings"]
    assert warning.startswith("The mask selects nothing")
    patch = Answered("masking", init_image=file_bytes(PHOTO), mask_image=spots(), patch=1)
    assert patch.image().size == (1, 1) and patch.body["images"][0]["box"] == [0, 0, 1, 1]


def test_a_gradient_fades_without_a_step() -> None:
    answer = Answered("masking", init_image=flat(), mask_image=case("mask_gradient.png"))
    row = np.asarray(answer.image())[256].astype(int)
    mask = np.asarray(case_image("mask_gradient.png"))[256]
    assert np.abs(np.diff(row, axis=0)).max() <= 6
    assert np.array_equal(row[mask == 0], np.full(((mask == 0).sum(), 3), (120, 140, 170)))
    assert np.abs(row[mask == 255] - (250, 0, 90)).max() <= 2


def flat() -> bytes:
    return file_bytes(Image.new("RGB", (512, 512), (120, 140, 170)))


def test_white_strokes_on_an_empty_layer_are_replaced_and_nothing_else() -> None:
    answer = Answered("masking", init_image=flat(), mask_image=case("mask_white_on_transparent.png"))
    changed = (np.asarray(answer.image()) != (120, 140, 170)).any(axis=2)
    strokes = np.asarray(case_image("mask_white_on_transparent.png").getchannel("A"))
    assert not changed[strokes == 0].any() and changed[strokes > 2].all()


def test_a_cut_out_keeps_its_alpha_and_its_hidden_colours_which_the_model_does_not_see() -> None:
    black = case_image("cutout_hidden_black.png")
    other = black.copy()
    other.paste((255, 0, 200, 0), mask=black.getchannel("A").point([255] + [0] * 255))
    mask = case("cutout_mask.png")
    for task, fields in (("masking", {"mask_image": mask}), ("img2img", {}), ("masking", {})):
        one, two = (Answered(task, init_image=file_bytes(image), **fields) for image in (black, other))
        assert one.error is two.error is None
        shown = [np.asarray(answer.image().convert("RGBA")) for answer in (one, two)]
        assert np.array_equal(*(image * (image[..., 3:] > 0) for image in shown))
        for one_seen, two_seen in zip(one.pipeline.seen, two.pipeline.seen, strict=True):
            assert np.array_equal(one_seen["image"], two_seen["image"])
        result, alpha = one.image(), np.asarray(black.getchannel("A"))
        if task == "img2img":
            assert np.array_equal(result.getchannel("A"), alpha)
        elif fields:
            kept = np.asarray(case_image("cutout_mask.png")) == 0
            assert np.array_equal(np.asarray(result.getchannel("A"))[kept], alpha[kept])
            for answered, image in zip(shown, (black, other), strict=True):
                assert np.array_equal(answered[kept], np.asarray(image)[kept])
        else:
            assert result.mode == "RGB"
            assert np.array_equal(np.asarray(result)[alpha == 255], np.asarray(black)[alpha == 255][:, :3])


def test_what_is_generated_is_opaque_where_white_was_transparent() -> None:
    mask = np.asarray(case_image("png_white_is_transparent_mask.png"))
    answer = Answered(
        "masking", init_image=case("png_white_is_transparent.png"), mask_image=case("png_white_is_transparent_mask.png")
    )
    assert (np.asarray(answer.image().convert("RGBA"))[mask == 255][:, 3] == 255).all()


def test_colours_are_the_same_whatever_the_documents_profile() -> None:
    mask = spots((60, 60, 200, 160), size=(320, 240))
    for task, fields in (("img2img", {}), ("masking", {"mask_image": mask, "prompt": "b"})):
        plain = Answered(task, init_image=case("chart.png"), **fields)
        wide = Answered(task, init_image=case("icc_p3.jpg"), **fields)
        assert wide.image().info["icc_profile"] == profile_of("icc_p3.jpg")
        assert "icc_profile" not in plain.image().info
        difference = np.abs(as_seen(wide.image()) - as_seen(plain.image()))
        assert difference.mean() < 1.6  # JPEG's and the conversions'
    pasted = np.asarray(wide.image())
    kept = np.asarray(Image.open(io.BytesIO(mask))) == 0
    assert np.array_equal(pasted[kept], np.asarray(case_image("icc_p3.jpg"))[kept])


def test_cmyk_comes_back_as_srgb() -> None:
    image = Answered("img2img", init_image=case("icc_cmyk.jpg")).image()
    assert image.mode == "RGB" and "icc_profile" not in image.info
    assert np.abs(as_seen(image) - as_seen(case_image("icc_cmyk_as_a_viewer_shows_it.png"))).mean() < 1


@pytest.mark.parametrize(("format", "mime"), [("png", "image/png"), ("jpeg", "image/jpeg"), ("webp", "image/webp")])
def test_the_answer_has_the_format_that_was_asked_for(format: str, mime: str) -> None:
    answer = Answered("img2img", init_image=file_bytes(sample_image(), dpi=(300, 300)), output_format=format)
    entry = answer.body["images"][0]
    assert entry["mimetype"] == entry["mime_type"] == mime and answer.image().format == format.upper()
    if format == "png":
        assert "compositeWithTrainedAlgorithmicMedia" in answer.image().info["xmp"].decode()
        assert answer.image().info["parameters"].startswith("x\nSteps: 4, ")
        assert round(answer.image().info["dpi"][0]) == 300


def test_a_transparent_jpeg_is_warned_of_once() -> None:
    fields = {"init_image": case("cutout_hidden_black.png"), "output_format": "jpeg", "num_outputs": 3}
    assert len(Answered("img2img", **fields).body["warnings"]) == 1


def test_a_flagged_image_is_black_and_so_is_its_patch() -> None:
    for fields, size in (({}, (1600, 1200)), ({"patch": 1}, (1350, 950))):
        answer = Answered("masking", Echo(True), init_image=file_bytes(PHOTO), mask_image=spots(*TWO), **fields)
        assert answer.body["images"][0]["nsfw"] is True
        assert answer.image().size == size and answer.image().convert("RGB").getextrema() == ((0, 0),) * 3


def test_an_answer_that_is_larger_than_expected_ends_the_request_with_advice() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8))
    answer = Answered("img2img", config=HandlerConfig(max_response_bytes=700_000), init_image=file_bytes(noise))
    assert answer.error is not None and answer.error.status == 413
    assert "ask for output_format=jpeg" in answer.error.message and "patch=true" in answer.error.message


@pytest.fixture(scope="module", params=["sd1", "sdxl", "inpainting", "lcm"])
def pipelines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tiny_models.save(request.param, tmp_path_factory.mktemp(request.param))
    yield load(folder, "masking") if request.param == "inpainting" else load(folder)


def test_a_hard_mask_of_the_models_size_is_generated_as_the_stock_pipeline_does(pipelines: dict[str, Any]) -> None:
    """As it was before there were crops: every argument is what was sent."""
    fields = {"prompt": "x", "seed": 3, "num_inference_steps": 3, "strength": 0.9,
              "init_image": file_bytes(sample_image()), "mask_image": file_bytes(half_mask())}  # fmt: skip
    request = parse_request("masking", fields, CONFIG, ModelDefaults(3, 7.5, 64, 64))
    own = pipeline_arguments(request, pipelines["masking"], request.crops[0])
    assert np.array_equal(own["image"], sample_image()) and np.array_equal(own["mask_image"], half_mask())
    assert (own["width"], own["height"]) == (64, 64)
    assert generated_alone(pipelines, request).size == (64, 64)


def test_a_spot_of_any_size_is_generated(pipelines: dict[str, Any]) -> None:
    """Two seeds differ within a single pixel's crop, whatever the family."""
    mask = Image.new("L", (640, 480))
    mask.putpixel((333, 222), 1)
    images = []
    for seed in (3, 4):
        fields = {"prompt": "x", "seed": seed, "num_inference_steps": 4, "strength": 1,
                  "init_image": file_bytes(sample_image(640, 480)), "mask_image": file_bytes(mask)}  # fmt: skip
        request = parse_request("masking", fields, CONFIG, ModelDefaults(4, 7.5, 64, 64))
        (crop,) = request.crops
        image = generated_alone(pipelines, request).resize((crop.box[2] - crop.box[0], crop.box[3] - crop.box[1]))
        images.append(np.asarray(image)[222 - crop.box[1], 333 - crop.box[0]])
    assert (images[0] != images[1]).any()
