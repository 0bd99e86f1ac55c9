"""Whatever a body holds, it is a request or a sentence: nothing else is raised, and no limit is passed."""

import base64
import json
import math
import os
from typing import Any
from urllib.parse import quote_from_bytes, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, RequestError
from handlers.imaging.files import FORMATS, decode_base64
from handlers.imaging.sizes import SIZE_MULTIPLE
from handlers.request import forms
from handlers.request.fields import GenerationRequest, ModelDefaults, parse_request
from handlers.request.reader import MAX_SEED
from handlers.wire import TASKS
from tests.support.samples import file_bytes, half_mask, sample_image

CONFIG = HandlerConfig(max_image_pixels=100_000, max_prompt_chars=200)
DEFAULTS = ModelDefaults()
CUT_OUT = sample_image(24, 16)
CUT_OUT.putalpha(half_mask(24, 16))
FILES = [file_bytes(sample_image(24, 16), kind) for kind in FORMATS] + [
    file_bytes(half_mask(24, 16)),
    file_bytes(CUT_OUT),
]
NAMES = ("prompt", "negative_prompt", "seed", "num_outputs", "num_inference_steps", "guidance_scale", "eta", "width",
         "height", "strength", "scheduler", "clip_skip", "init_image", "mask_image", "mask_mode", "mask_padding",
         "mask_grow", "mask_blur", "mask_invert", "mask_fill", "patch", "output_format", "output_quality")  # fmt: skip
TYPES = (forms.FORM, forms.JSON, "", "multipart/form-data; boundary=b", "multipart/form-data", "text/plain", "\x00;=")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged EXIF
EXAMPLES = os.environ.get("SD_FUZZ_EXAMPLES")  # `make fuzz`: other ones each time
often = settings(max_examples=int(EXAMPLES or 200), deadline=None, derandomize=EXAMPLES is None)

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
number = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, 1, 2**53 - 1, 2**53, -1, 512, 1e308, "1e400", "٣", "0x10", " 7 "])
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), number, st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image file with some bytes changed, cut off, or added."""
    file = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 8))):
        file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
    end = draw(st.integers(0, len(file)) | st.just(len(file)))
    return bytes(file[:end]) + draw(st.binary(max_size=10))


image = st.one_of(damaged().map(lambda file: base64.b64encode(file).decode()), st.text(max_size=40))


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    kinds = {"init_image": image, "mask_image": image}
    chosen = draw(st.sets(st.sampled_from(NAMES)))
    return {"prompt": "x"} | {name: draw(kinds.get(name, st.nothing()) | number | anything) for name in chosen}


@often
@given(body=st.binary(max_size=200), kind=st.sampled_from(TYPES))
def test_any_bytes_are_fields_or_a_sentence(body: bytes, kind: str) -> None:
    try:
        found = forms.parse_body(body, kind, 10)
    except InvalidRequest:
        return
    assert len(found) <= 10


@often
@given(st.dictionaries(text, text, max_size=8))
def test_a_form_is_read_as_it_was_meant(sent: dict[str, str]) -> None:
    expected = {name: value.encode() for name, value in sent.items()}
    assert forms.parse_body(urlencode(sent).encode(), forms.FORM, 10) == expected
    assert forms.parse_body(json.dumps(sent).encode(), forms.JSON, 10) == sent


@often
@given(st.binary(min_size=1, max_size=100), st.integers(0, 3))
def test_base64_as_clients_send_it(data: bytes, kind: int) -> None:
    plain = base64.b64encode(data)
    sent = (
        plain, plain.rstrip(b"=") + b"\r\n", base64.urlsafe_b64encode(data), b"data:image/png;base64," + plain,
    )[kind]  # fmt: skip
    escaped = forms.parse_body(b"a=" + quote_from_bytes(sent).encode(), forms.FORM, 1)["a"]
    assert decode_base64(escaped, "a") == data


@often
@given(fields(), st.sampled_from(TASKS))
def test_any_fields_are_a_request_within_the_limits_or_a_sentence(sent: dict[str, Any], task: str) -> None:
    try:
        body = json.dumps(sent).encode("utf-8", "surrogatepass")
        request = parse_request(task, forms.parse_body(body, forms.JSON, 20), CONFIG, DEFAULTS, ["DDIMScheduler"])
    except RequestError as error:
        assert 400 <= error.status < 500 and str(error).endswith(".")
        return
    _check(request)


@often
@given(damaged(), damaged(), st.sampled_from(TASKS[1:]))
def test_any_image_file_is_a_image_or_a_sentence(init: bytes, mask: bytes, task: str) -> None:
    sent = {"prompt": b"x", "init_image": init, "mask_image": base64.b64encode(mask)}
    try:
        request = parse_request(task, sent, CONFIG, DEFAULTS)
    except RequestError as error:
        assert 400 <= error.status < 500 and str(error).endswith(".")
        return
    _check(request)
    assert request.init_image is not None and request.init_image.image.mode in ("RGB", "RGBA")


def _check(request: GenerationRequest) -> None:
    assert 1 <= request.seed <= MAX_SEED - request.num_outputs + 1
    assert 1 <= request.num_outputs <= CONFIG.max_num_outputs
    assert 1 <= request.num_inference_steps <= CONFIG.max_num_inference_steps
    assert math.isfinite(request.guidance_scale) and request.guidance_scale >= 0
    assert 0 <= request.eta <= 1 and 0 < request.strength <= 1
    assert len(request.prompt) <= CONFIG.max_prompt_chars
    for side in (side for crop in request.crops for side in crop.size):
        assert side % SIZE_MULTIPLE == 0 and CONFIG.min_size <= side <= CONFIG.max_size
