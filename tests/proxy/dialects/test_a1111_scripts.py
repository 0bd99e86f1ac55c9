"""Units of ControlNet, as AUTOMATIC1111's clients send them."""

import json
from typing import Any

import pytest

from handlers.wire import Failed
from tests.support.dialects import DATA, talking

pytestmark = pytest.mark.anyio

UNIT = {"model": "edges [d14c016b]", "module": "none", "image": DATA}


async def ask(*units: Any, kind: str = "txt2img", **sent: Any) -> tuple[Any, dict[str, Any]]:
    async with talking() as (http, served):
        scripts = {"alwayson_scripts": {"controlnet": {"args": [*units]}}}
        answer = await http.post(f"/sdapi/v1/{kind}", json=scripts | sent)
        return answer, served.native if served.asked else {}


@pytest.mark.parametrize(
    ("changed", "native"),
    [
        ({}, {"controlnet": "edges", "control_scale": "1.0", "control_start": "0.0", "control_end": "1.0",
              "control_fit": "crop", "control_image": DATA}),
        ({"weight": 0.5, "guidance_start": 0.1, "guidance_end": "0.9", "resize_mode": "Just Resize"},
         {"control_scale": "0.5", "control_start": "0.1", "control_end": "0.9", "control_fit": "stretch"}),
        ({"resize_mode": 2, "image": {"image": f"data:image/png;base64,{DATA}", "mask": None}}, {"control_fit": "pad"}),
        ({"image": None, "input_image": DATA}, {"control_image": DATA}),
        ({"processor_res": 512, "threshold_a": 64, "pixel_perfect": True, "low_vram": False}, {}),
    ],
)  # fmt: skip
async def test_a_unit_becomes_native_fields(changed: dict[str, Any], native: dict[str, Any]) -> None:
    answer, asked = await ask(UNIT | changed, {"enabled": False, "model": "depth"})
    assert answer.status_code == 200 and native.items() <= asked.items()
    assert json.loads(answer.json()["info"])["extra_generation_params"] == {}


async def test_each_unit_becomes_native_fields_with_its_number() -> None:
    units = [
        UNIT,
        {"enabled": False},
        UNIT | {"model": "depth", "weight": 0.5},
        UNIT | {"model": "pose", "image": None},
    ]
    answer, asked = await ask(*units, controlnet_units=[UNIT | {"model": "lines"}])
    assert answer.status_code == 200
    nets = {name: value for name, value in asked.items() if name.startswith("controlnet")}
    assert nets == {"controlnet": "edges", "controlnet_2": "depth", "controlnet_3": "pose", "controlnet_4": "lines"}
    assert (asked["control_scale"], asked["control_scale_2"], asked["control_image_2"]) == ("1.0", "0.5", DATA)
    assert "control_image_3" not in asked and asked["control_image_4"] == DATA


async def test_native_sentences_name_the_unit() -> None:
    failure = Failed(400, "control_image_2 is missing: send the edges, depths or pose that controlnet_2 needs.").line()
    async with talking(failure) as (http, _):
        scripts = {"alwayson_scripts": {"controlnet": {"args": [UNIT, UNIT]}}}
        told = (await http.post("/sdapi/v1/txt2img", json=scripts)).json()["detail"]
    assert told == ("ControlNet 2's image is missing: send the edges, depths or pose that ControlNet 2's model needs.")


async def test_what_it_cannot_do_is_named() -> None:
    answer, _ = await ask(UNIT | {"control_mode": "ControlNet is more important", "effective_region_mask": DATA})
    told = json.loads(answer.json()["info"])["extra_generation_params"]["Warnings"]
    assert told == (
        "ControlNet's control_mode was balanced, the only one here. "
        "ControlNet's effective_region_mask has no effect here."
    )


@pytest.mark.parametrize(
    ("units", "sentence"),
    [
        ([UNIT] * 5, "ControlNet takes at most 4 enabled units"),
        ([UNIT, UNIT | {"module": "canny"}], "ControlNet 2: the preprocessor 'canny' is not here"),
        ([UNIT | {"module": "canny"}], "the preprocessor 'canny' is not here"),
        ([UNIT | {"model": "None"}], "ControlNet: model must be one of"),
        ([UNIT | {"resize_mode": "other"}], "ControlNet: resize_mode must be one of just resize, crop and resize"),
        ([UNIT | {"weight": "much"}], "weight must be a number"),
        ([UNIT | {"image": 5}], "ControlNet's image must be an image"),
        (["canny"], "ControlNet takes units, each of them an object"),
    ],
)
async def test_what_is_refused(units: list[Any], sentence: str) -> None:
    answer, asked = await ask(*units)
    assert answer.status_code == 422 and sentence in answer.json()["detail"] and not asked


async def test_lists() -> None:
    async with talking() as (http, _):
        assert (await http.get("/controlnet/model_list")).json() == {"model_list": ["edges"]}
        assert (await http.get("/controlnet/module_list")).json()["module_list"] == ["none"]
        types = (await http.get("/controlnet/control_types")).json()["control_types"]
        assert types["All"]["model_list"] == ["None", "edges"]
