"""The fields of a ControlNet."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.files import TooManyPixels
from handlers.imaging.regions import Crop
from handlers.request.fields import GenerationRequest, ModelDefaults, parse_request
from tests.support.samples import file_bytes, sample_image

IMAGE = sample_image(90, 60)


def parse(**fields: Any) -> GenerationRequest:
    sent = {"prompt": "x", "controlnet": "edges", "control_image": file_bytes(IMAGE)} | fields
    return parse_request("txt2img", sent, HandlerConfig(), ModelDefaults(), controlnets=("Edges", "depth"))


def test_what_guides() -> None:
    (control,) = parse(control_scale="0.5", control_start=0.25, control_end="0.75", control_fit="stretch").controls
    assert (control.net, control.scale) == ("Edges", 0.5)
    assert (control.start, control.end) == (0.25, 0.75)
    wide = IMAGE.resize((180, 60), Image.Resampling.LANCZOS)
    (seen,) = control.of_crops((180, 60), [Crop.whole((180, 60), (96, 64))])
    assert np.array_equal(seen, wide.resize((96, 64), Image.Resampling.LANCZOS))


def test_a_crop_is_guided_by_its_part() -> None:
    (control,) = parse().controls
    (part,) = control.of_crops(IMAGE.size, [Crop((10, 20, 74, 52), (64, 32), (10, 20, 74, 52))])
    assert np.array_equal(part, IMAGE.crop((10, 20, 74, 52)))


def test_without_a_controlnet_the_others_are_named() -> None:
    request = parse(controlnet="", control_scale=2, control_end=1)
    assert request.controls == ()
    assert request.warnings == ("control_image, control_scale without controlnet: nothing was guided.",)


def test_each_has_the_fields_with_its_number() -> None:
    second = {"controlnet_3": "depth", "control_image_3": file_bytes(IMAGE), "control_scale_3": 2}
    request = parse(**second, control_end_2=0.5)
    assert [(control.net, control.scale) for control in request.controls] == [("Edges", 1.0), ("depth", 2.0)]
    assert request.warnings == ("control_end_2 without controlnet_2: nothing was guided.",)


def test_together_their_images_have_as_many_pixels_as_one_may() -> None:
    both: dict[str, Any] = {"prompt": "x", "controlnet": "a", "controlnet_2": "a", "control_image_2": file_bytes(IMAGE)}
    sent = both | {"control_image": file_bytes(IMAGE)}

    def parsed(task: str, fields: dict[str, Any], most: int) -> GenerationRequest:
        return parse_request(task, fields, HandlerConfig(max_image_pixels=most), ModelDefaults(), controlnets=("a",))

    assert len(parsed("txt2img", sent, 2 * 90 * 60).controls) == 2
    with pytest.raises(TooManyPixels, match="images have more than 10799 pixels together: send smaller ones") as told:
        parsed("txt2img", sent, 2 * 90 * 60 - 1)
    assert told.value.pixels == 2 * 90 * 60
    # the init image that guides is none of them, and is there once
    own = both | {"init_image": file_bytes(IMAGE), "controlnet_3": "a"}
    first, _, third = parsed("img2img", own, 90 * 60).controls
    assert first.image is third.image


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"controlnet": "poses"}, "controlnet must be one of Edges, depth, not 'poses'."),
        ({"control_image": ""}, "control_image is missing"),
        ({"control_scale": 3}, "control_scale must be a number of at least 0 and at most 2"),
        ({"control_start": 0.5, "control_end": 0.5}, "control_start 0.5 must be below control_end 0.5."),
        ({"controlnet_2": "depth"}, "control_image_2 is missing: .* that controlnet_2 needs"),
        ({"control_start_4": 0.5, "control_end_4": 0.2, "controlnet_4": "depth"}, "control_start_4 0.5 must be below"),
        ({"control_fit": "x"}, "control_fit must be one of stretch, crop, pad"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        parse(**fields)
