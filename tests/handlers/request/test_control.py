"""The fields of a ControlNet."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.regions import Crop
from handlers.request.fields import GenerationRequest, ModelDefaults, parse_request
from tests.support.samples import file_bytes, sample_image

IMAGE = sample_image(90, 60)


def parse(**fields: Any) -> GenerationRequest:
    sent = {"prompt": "x", "controlnet": "edges", "control_image": file_bytes(IMAGE)} | fields
    return parse_request("txt2img", sent, HandlerConfig(), ModelDefaults(), controlnets=("Edges", "depth"))


def test_what_guides() -> None:
    control = parse(control_scale="0.5", control_start=0.25, control_end="0.75", control_fit="stretch").control
    assert control is not None and (control.net, control.scale) == ("Edges", 0.5)
    assert (control.start, control.end) == (0.25, 0.75)
    wide = IMAGE.resize((180, 60), Image.Resampling.LANCZOS)
    seen = control.fitted((180, 60)).of_crop(Crop.whole((180, 60), (96, 64)))
    assert np.array_equal(seen, wide.resize((96, 64), Image.Resampling.LANCZOS))


def test_a_crop_is_guided_by_its_part() -> None:
    control = parse().control
    assert control is not None
    part = control.fitted(IMAGE.size).of_crop(Crop((10, 20, 74, 52), (64, 32), (10, 20, 74, 52)))
    assert np.array_equal(part, IMAGE.crop((10, 20, 74, 52)))


def test_without_a_controlnet_the_others_are_named() -> None:
    request = parse(controlnet="", control_scale=2, control_end=1)
    assert request.control is None
    assert request.warnings == ("control_image, control_scale without controlnet: nothing guided the generation.",)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"controlnet": "poses"}, "controlnet must be one of Edges, depth, not 'poses'."),
        ({"control_image": ""}, "control_image is missing"),
        ({"control_scale": 3}, "control_scale must be a number of at least 0 and at most 2"),
        ({"control_start": 0.5, "control_end": 0.5}, "control_start 0.5 must be below control_end 0.5."),
        ({"control_fit": "x"}, "control_fit must be one of stretch, crop, pad"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse(**fields)
