"""The tags of LoRAs in a prompt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.errors import InvalidRequest
from handlers.request.lora_tags import LoraTag, drop_tags, tag_warnings, take_tags


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:a>", LoraTag("a", 1, 1)),
        ("<lora:a:0.8>", LoraTag("a", 0.8, 0.8)),
        ("<lora:a:0.8:0.5>", LoraTag("a", 0.8, 0.5)),
        ("<lora:a:te=0.8>", LoraTag("a", 0.8, 0.8)),
        ("<lora:a:unet=0.5>", LoraTag("a", 1, 0.5)),
        ("<lora:a:0.8:unet=0.5>", LoraTag("a", 0.8, 0.5)),
        ("<lora:a:unet=.5:te=-1>", LoraTag("a", -1, 0.5)),
        ("<LORA: my style v1.2 : 1 >", LoraTag("my style v1.2", 1, 1)),
        ("<lyco:a-b_c(1):1>", LoraTag("a-b_c(1)", 1, 1)),
    ],
)
def test_the_web_uis_syntax(tag: str, expected: LoraTag) -> None:
    assert take_tags(f"a red {tag}apple") == ("a red apple", (expected,), ())


def test_several_are_sorted_and_the_same_one_adds_up() -> None:
    text, tags, others = take_tags("<lora:b:0.5>x<lora:a:1:0><lora:b:0.25:1> <hypernet:h:1>")
    assert (text, tags, others) == ("x ", (LoraTag("a", 1, 0), LoraTag("b", 0.75, 1.5)), ("<hypernet:h:1>",))


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:a:0.8:0.5:4>", LoraTag("a", 0.8, 0.5)),
        ("<lora:a:0.8:0.5:64:1:2>", LoraTag("a", 0.8, 0.5)),
        ("<lora:a:dyn=4:0.8>", LoraTag("a", 0.8, 0.8)),
        ("<LYCO:a:0.8:dyn=4>", LoraTag("a", 0.8, 0.8)),
    ],
)
def test_a_third_number_is_taken_and_warned_of(tag: str, expected: LoraTag) -> None:
    assert take_tags(f"x {tag}") == ("x ", (expected,), (tag,))
    (warning,) = tag_warnings((tag,), False)
    assert warning == f"{tag} in prompt has a dynamic rank, which has no effect here."


@pytest.mark.parametrize("text", ["", "a < b", "<lora>", "<3 (a:1.2) <lora", "a <b> : c", "<cat-toy>"])
def test_other_text_stays(text: str) -> None:
    assert take_tags(text) == (text, (), ())


@pytest.mark.parametrize(
    ("tag", "sentence"),
    [
        ("<lora:a:much>", "has the weight 'much', which is not a number: write <lora:name:0.8>"),
        ("<lora:a:nan>", "has the weight 'nan'"),
        ("<lora:a:1e999>", "has the weight '1e999'"),
        ("<lora:a:11>", "The LoRA a has the weight 11: weights are from -10 to 10"),
        ("<lora:a:1:2:much>", "has the weight 'much', which is not a number"),
        ("<lora:a:1:more=2>", "<lora:a:1:more=2> in prompt is not understood: write"),
        ("<lora:a:te=1:te=2>", "is not understood"),
        ("<lora:a:dyn=4:dyn=4>", "is not understood"),
        ("<lora: :1>", "is not understood"),
        ("".join(f"<lora:{i}>" for i in range(17)), "prompt has 17 LoRAs: at most 16 can be used at once"),
    ],
)
def test_a_faulty_tag_is_a_sentence(tag: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        take_tags(f"x {tag}")
    assert sentence in error.value.message


def test_in_a_negative_prompt_tags_are_dropped_whatever_they_say() -> None:
    assert drop_tags("a<lora:a:b><lora:c:11><x:y>b") == ("ab", True) and drop_tags("a < b") == ("a < b", False)
    (warning,) = tag_warnings((), True)
    assert warning.startswith("A tag such as <lora:…> has no effect in negative_prompt")


def test_a_sentence_repeats_no_more_than_it_needs() -> None:
    assert len(*tag_warnings((f"<lora:{'x' * 5000}:1:1:4>",), False)) < 200


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*"<>:=,. 1-x", "lora", "te=", "0.5"]), max_size=30).map("".join))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        left, tags, _ = take_tags(text)
    except InvalidRequest:
        return
    assert all(tag.name for tag in tags) and "<lora:x" not in left.replace("<lora:x:", "")
