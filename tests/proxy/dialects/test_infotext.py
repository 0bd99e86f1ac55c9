"""The text of generated images: found in the files that the server writes, and in none that is damaged."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from handlers.imaging.output import FORMATS, SideData, encode
from proxy.dialects.infotext import text_of, values_of

TEXT = (
    "a cat: black,\n(white:1.2)\nNegative prompt: dog\nblurred\nSteps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 3, "
    'Size: 64x32, Model: "a, \\"b\\"", Version: x'
)


def file(format: str, text: str) -> bytes:
    side = SideData(profile=None, parameters=text, mark="trainedAlgorithmicMedia")
    return base64.b64decode(encode(Image.new("RGB", (64, 32), "red"), format, 90, side)[0])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", [TEXT, "ein Käfer\nSteps: 1", "甲虫\nSteps: 1"], ids=["plain", "latin", "other"])
def test_the_text_of_a_file(format: str, text: str) -> None:
    assert text_of(file(format, text)) == text


@pytest.mark.parametrize("format", FORMATS)
def test_no_text_is_empty(format: str) -> None:
    assert text_of(file(format, "")) == ""


@given(st.sampled_from(FORMATS), st.data())
def test_any_bytes_are_a_text_or_none(format: str, data: st.DataObject) -> None:
    whole = bytearray(file(format, TEXT))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)):
        whole[at] = data.draw(st.integers(0, 255))
    assert isinstance(text_of(bytes(whole[: data.draw(st.integers(0, len(whole)))])), str)


def test_the_values() -> None:
    assert values_of(TEXT) == {
        "Prompt": "a cat: black,\n(white:1.2)", "Negative prompt": "dog\nblurred", "Steps": "20", "Sampler": "Euler a",
        "CFG scale": "7.0", "Seed": "3", "Size-1": "64", "Size-2": "32", "Model": 'a, "b"', "Version": "x",
        "Clip skip": "1", "RNG": "GPU",
    }  # fmt: skip
    # a last line of fewer values is a part of the prompt
    assert values_of("a cat\nSteps: 3") == {
        "Prompt": "a cat\nSteps: 3", "Negative prompt": "", "Clip skip": "1", "RNG": "GPU",
    }  # fmt: skip
    assert values_of("")["Prompt"] == ""


@given(st.text(max_size=300))
def test_any_text_has_values(text: str) -> None:
    assert {"Prompt", "Negative prompt"} <= values_of(text).keys()


def test_what_the_writer_quotes_is_read_back() -> None:
    text = 'a cat\nSteps: 2, Sampler: DDIM, Hires prompt: "a\\nb, \\"c\\"", Version: x'
    assert values_of(text)["Hires prompt"] == 'a\nb, "c"'
