"""openapi.json, held against the code's own limits, and schemathesis between it and the real server."""

import inspect
import json
import re
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, RequestError
from handlers.imaging.upscaling import UPSCALERS
from handlers.request.fields import ModelDefaults, parse_request
from handlers.request.reader import MAX_SEED
from handlers.request.upscale import MAX_SCALE, MAX_SIDE, parse_upscale
from handlers.wire import TASKS
from proxy.routes import routes
from proxy.web.page import FOLDER
from tests.support.running import HANG_S, Running
from tests.support.samples import b64, half_mask, sample_image

DOCUMENT: dict[str, Any] = json.loads((FOLDER / "openapi.json").read_text(encoding="utf-8"))
SCHEMAS = DOCUMENT["components"]["schemas"]
IMAGES = {"init_image": b64(sample_image()), "mask_image": b64(half_mask())}
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
          response_schema_conformance]  # fmt: skip
PAGES = ("/", "/docs", "/openapi.json", "/static/{name}")


def parse(task: str, **fields: Any) -> Any:
    images = {name: IMAGES[name] for name in SCHEMAS[task]["properties"] if name in IMAGES}
    return parse_request(
        task, {"prompt": "x", **images, **fields}, HandlerConfig(), ModelDefaults(), {"DDIMScheduler": ()}
    )


def test_every_route_is_described() -> None:
    described = {(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods}
    served = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
        if route.path not in PAGES
    }
    assert described == served


class Asked(dict[str, Any]):
    """Fields that tell which of them were read."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("task", TASKS)
def test_the_fields_are_those_that_are_read(task: str) -> None:
    known = set(SCHEMAS[task]["properties"])
    images = {name: IMAGES[name] for name in SCHEMAS[task]["properties"] if name in IMAGES}
    asked = Asked(prompt="x", **images)
    parse_request(task, asked, HandlerConfig(), ModelDefaults())
    assert asked.names == known - {"model"}  # which the proxy reads
    for name in SCHEMAS[task]["required"]:
        with pytest.raises(InvalidRequest, match=f"{name} is missing"):
            fields = {"prompt": "x", **images}
            del fields[name]
            parse_request(task, fields, HandlerConfig(), ModelDefaults())


def test_the_fields_of_upscale_and_their_limits() -> None:
    properties = SCHEMAS["upscale"]["properties"]
    asked = Asked(init_image=IMAGES["init_image"], scale=2)
    parse_upscale(asked, HandlerConfig(), UPSCALERS)
    assert asked.names == set(properties) - {"model"}
    assert properties["scale"]["maximum"] == MAX_SCALE
    assert {properties[side]["maximum"] for side in ("width", "height")} == {MAX_SIDE}


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in SCHEMAS[task]["properties"]])
def test_the_limits_are_the_codes(task: str, name: str) -> None:
    schema = SCHEMAS[task]["properties"][name]
    step = schema.get("multipleOf", 1)
    good, bad = [], []
    for bound, outwards in (("minimum", -step), ("maximum", step)):
        if bound in schema:
            good.append(schema[bound])
            bad.append(schema[bound] + outwards)
    if "exclusiveMinimum" in schema:
        bad.append(schema["exclusiveMinimum"])
    if "multipleOf" in schema:
        bad.append(schema["minimum"] + 1)
    if "maxLength" in schema:
        good.append("x" * schema["maxLength"])
        bad.append("x" * (schema["maxLength"] + 1))
    # with all steps, so that a small strength still leaves one
    steps = {} if name == "num_inference_steps" or task == "txt2img" else {"num_inference_steps": 250}
    if name == "num_inference_steps" and task != "txt2img":
        steps = {"strength": 1}
    for value in good:
        parse(task, **{**steps, name: value})
    for value in bad:
        with pytest.raises(RequestError, match=name):
            parse(task, **{**steps, name: value})
    if "default" in schema and name != "seed":  # which is generated
        assert parse(task, **{"seed": 1, name: schema["default"]}) == parse(task, seed=1)


def test_the_limits_in_sentences() -> None:
    config, text = HandlerConfig(), SCHEMAS["img2img"]["properties"]["init_image"]["description"]
    assert f"{config.max_image_bytes} bytes" in text and f"{config.max_image_pixels} pixels" in text
    assert SCHEMAS["txt2img"]["properties"]["seed"]["maximum"] == MAX_SEED
    assert inspect.signature(ModelDefaults).parameters["num_inference_steps"].default == 50


@pytest.mark.e2e
def test_the_examples_work_as_they_stand(combined: Running) -> None:
    for task in (*TASKS, "upscale"):
        content = DOCUMENT["paths"][f"/{task}"]["post"]["requestBody"]["content"]
        assert len(content) == 3
        for kind, media in content.items():
            options = {"json": media["example"]} if kind.endswith("json") else {"data": media["example"]}
            answer = httpx.post(f"{combined.url}/{task}", timeout=HANG_S, **options)
            assert answer.status_code == 200 and answer.json()["images"], answer.text


@pytest.mark.e2e
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["as described", "not so"])
@pytest.mark.parametrize(
    ("path", "method"), [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
)
def test_schemathesis_finds_nothing(combined: Running, path: str, method: str, mode: GenerationMode) -> None:
    """What fits the description, and what does not: the answers are of the kinds that it has."""
    if "requestBody" not in DOCUMENT["paths"][path][method] and mode == GenerationMode.NEGATIVE:
        return  # there is nothing to send
    if path.startswith(("/v1/images", "/images", "/sdapi", "/internal")) and mode == GenerationMode.NEGATIVE:
        return  # much of what does not fit is taken there, with a warning
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.base_url = combined.url

    @given(case=schema[path][method.upper()].as_strategy(generation_mode=mode))
    @settings(
        max_examples=20, deadline=None, database=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def sends(case: Any) -> None:
        if isinstance(case.body, dict):
            # what is allowed would take long, or overflow this model's numbers, which is a 500 that says so
            most_of = {"num_inference_steps": 3, "num_outputs": 2, "n": 2, "guidance_scale": 30, "width": 256,
                       "height": 256, "steps": 3, "batch_size": 2, "n_iter": 1, "cfg_scale": 30,
                       "hires_width": 256, "hires_height": 256, "hires_steps": 3}  # fmt: skip
            for name, most in most_of.items():
                if isinstance(case.body.get(name), (int, float)) and case.body[name] > most:
                    case.body[name] = most
            if path.startswith("/sdapi/v1/") and path.endswith("2img"):
                case.body.setdefault("steps", 3)  # by default 50
            if mode == GenerationMode.POSITIVE:
                case.body.pop("model", None)  # any text may be a name, and hardly any is one
                case.body |= {name: image for name, image in IMAGES.items() if name in case.body}
                if "init_images" in case.body:
                    case.body["init_images"] = [IMAGES["init_image"]]
        case.call_and_validate(checks=CHECKS, timeout=HANG_S)

    sends()
    if path == "/sdapi/v1/options":  # which hold for the requests of later tests, too
        answer = httpx.post(combined.url + path, json={"samples_format": "png", "CLIP_stop_at_last_layers": 1})
        assert answer.status_code == 200
