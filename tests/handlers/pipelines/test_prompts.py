"""The syntax of prompts, and their encodings against the tiny models' own tokenizers and encoders."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.errors import InvalidRequest
from handlers.pipelines.prompt_cache import remember_prompts
from handlers.pipelines.prompts import Prompts
from handlers.request.prompt_syntax import ParsedPrompt, parse_prompt
from handlers.wire import TASKS
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_together, load

UP, DOWN = 1.1, 1 / 1.1


def pieces(text: str) -> list[tuple[str, float]]:
    """The pieces of a prompt without BREAK, their weights rounded."""
    (section,) = parse_prompt(text).sections
    return [(text, round(weight, 9)) for text, weight in section]


def rounded(*expected: tuple[str, float]) -> list[tuple[str, float]]:
    return [(text, round(weight, 9)) for text, weight in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a house", [("a house", 1)]),
        ("a (red) apple", [("a ", 1), ("red", UP), (" apple", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("(x: 0.5 )", [("x", 0.5)]),
        ("(x:-1)(y:.5)(z:2.)", [("x", -1), ("y", 0.5), ("z", 2)]),
        ("[dull]", [("dull", DOWN)]),
        ("((a) b:2)", [("a", 2 * UP), (" b", 2)]),
        ("([a])[[b]]", [("a", 1), ("b", DOWN * DOWN)]),
        ("(a [b] c)", [("a ", UP), ("b", 1), (" c", UP)]),
        (r"\(a\) \[b\] \\ c\d", [(r"(a) [b] \ c\d", 1)]),
        (r"(a\):1.2)", [("a)", 1.2)]),
        (r"(a:1.2\)", [("a:1.2)", UP)]),
        ("(a", [("a", UP)]),
        ("[a (b", [("a ", DOWN), ("b", 1)]),
        ("a) b] :)", [("a) b] :)", 1)]),
        ("a: b:1.3) c|d", [("a: b:1.3) c|d", 1)]),
        ("(a: b)", [("a: b", UP)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(a:1.2.3)", [("a:1.2.3", UP)]),
        ("BREAKS aBREAK", [("BREAKS aBREAK", 1)]),
        ("BBB break", [("BBB break", 1)]),
        ("()", []),
    ],
)
def test_the_web_uis_syntax(text: str, expected: list[tuple[str, float]]) -> None:
    assert pieces(text) == rounded(*expected)
    assert parse_prompt(text).edits == ()


def test_break_parts_a_prompt_and_weights_go_on() -> None:
    assert parse_prompt("a BREAK (b BREAK c:2)BREAK").sections == (
        (("a ", 1.0),), ((" ", 1.0), ("b ", 2.0)), ((" c", 2.0),), (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "edits"),
    [
        ("a [cat|dog] b", ["[cat|dog]"]),
        ("[a:b:0.5] [c:9]", ["[a:b:0.5]", "[c:9]"]),
        ("[a:[b|c]:3]", ["[b|c]", "[a:[b|c]:3]"]),
        ("x [a|b", ["[a|b"]),
    ],
)
def test_what_changes_between_steps_is_named_and_stays_text(text: str, edits: list[str]) -> None:
    assert parse_prompt(text) == ParsedPrompt((((text, 1.0),),), tuple(edits))


def test_weights_hold_within_what_is_text_otherwise() -> None:
    parsed = parse_prompt("[a:(b:1.5):0.5]")
    assert parsed.sections == ((("[a:", 1.0), ("b", 1.5), (":0.5]", 1.0)),) and parsed.edits == ("[a:(b:1.5):0.5]",)
    assert parse_prompt("[(a:1.5)]").edits == ()  # the colon is the round bracket's


often = settings(max_examples=300, deadline=None, derandomize=True)
syntax = st.lists(
    st.sampled_from([*"()[]:|\\ ab1.", "BREAK", ":1.3)", "word", ":-2)", "\\(", "\n", "é"]), max_size=40
).map("".join)


@often
@given(syntax | st.text(max_size=60))
def test_any_text_parses(text: str) -> None:
    parsed = parse_prompt(text)
    for section in parsed.sections:
        assert all(piece for piece, _ in section)
        assert all(before[1] != after[1] for before, after in pairwise(section))
    assert all(edit in text for edit in parsed.edits)
    letters = "".join(piece for section in parsed.sections for piece, _ in section)
    assert letters.count("w") == text.count("w")  # no word is lost


@often
@given(st.text(max_size=60))
def test_what_is_escaped_is_text(text: str) -> None:
    escaped = "".join(f"\\{sign}" if sign in "()[]\\" else sign for sign in text)
    joined = "BREAK".join("".join(piece for piece, _ in section) for section in parse_prompt(escaped).sections)
    assert joined == text
    assert parse_prompt(escaped).weights <= {1.0}


@often
@given(st.lists(st.sampled_from([0.5, 1.25, 2.0, None]), max_size=8))
def test_nested_weights_multiply(weights: list[float | None]) -> None:
    text, expected = "x", 1.0
    for weight in weights:
        text = f"({text}:{weight})" if weight else f"[{text}]"
        expected *= weight or 1 / 1.1
    assert pieces(text) == [("x", pytest.approx(expected))]


@pytest.mark.parametrize(
    "text", ["(" * 5000 + ")" * 5000, "[" * 10_000, "(a:" * 3000, " " * 10_000, ":" * 10_000, "[|" * 5000]
)
def test_long_nonsense_parses_too(text: str) -> None:
    assert len(parse_prompt(text).sections) == 1


def test_a_weight_that_would_overflow_is_refused() -> None:
    for text in ("(x:10.5)", "(x:-11)", "((x:5):5)", f"(x:{'9' * 500})", "(" * 30 + "x"):
        with pytest.raises(InvalidRequest, match=r"negative_prompt has the weight .*: weights are from -10 to 10"):
            Prompts("x", text)
    Prompts("(x:10)", "(x:-10)")


def test_a_warning_names_the_field_and_the_text() -> None:
    assert Prompts("a [b]", "").warnings == ()
    assert Prompts("SAND and grand", "").warnings == ()
    (composed,) = Prompts("a cat AND a dog :0.8", "").warnings
    assert composed == "prompt has AND: prompts are not composed here, so this is plain text."
    first, second = Prompts("a [b|c]", f"[{'x' * 60}|y]").warnings
    assert first.startswith("prompt has [b|c]: ") and first.endswith(" plain text.")
    assert second.startswith(f"negative_prompt has [{'x' * 49}…: ")


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl", "inpainting", "lcm", "turbo"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    pipeline = tiny_models.make(request.param)
    remember_prompts([pipeline])
    return pipeline


def arguments(pipeline: Any, prompt: str, negative: str = "", **options: Any) -> dict[str, Any]:
    """What a job's pipeline is called with."""
    given: dict[str, Any] = {"prompt": prompt, "guidance_scale": 7.5, **options}
    if "LatentConsistency" not in type(pipeline).__name__:
        given["negative_prompt"] = negative
    with torch.no_grad():
        return Prompts(prompt, negative).arguments_for(pipeline, given)


def reference(pipeline: Any, *chunks: str, hidden: int | None = None) -> torch.Tensor:
    """The chunks' hidden states by the tokenizers and encoders alone, one after the other."""
    encoded = []
    for text in chunks:
        states = []
        for suffix in ("", "_2"):
            encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}", None) for part in ("text_encoder", "tokenizer"))
            if encoder is None:
                continue
            encoder = encoder.module  # past the cache
            ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
            assert ids.shape == (1, 77)
            with torch.no_grad():
                output = encoder(ids, output_hidden_states=True)
            if hasattr(pipeline, "text_encoder_2"):
                states.append(output.hidden_states[hidden or -2])
            elif hidden:
                norm = getattr(encoder, "text_model", encoder).final_layer_norm
                with torch.no_grad():
                    states.append(norm(output.hidden_states[hidden]))
            else:
                states.append(output[0])
        encoded.append(torch.cat(states, dim=-1))
    return torch.cat(encoded, dim=1)


def words(count: int) -> str:
    return " ".join(["apple"] * count)


@pytest.mark.parametrize(("prompt", "negative"), [("a red apple", "dull"), ("", ""), (words(75), ":)"), ("[a|b]", "")])
def test_a_plain_prompt_stays_text(model: Any, prompt: str, negative: str) -> None:
    made = arguments(model, prompt, negative, eta=0.5)
    expected = {"prompt": prompt, "guidance_scale": 7.5, "eta": 0.5, "negative_prompt": negative}
    assert made == {name: value for name, value in expected.items() if name in made} and "prompt" in made


def test_one_chunk_without_weights_is_the_pipelines_own_encoding(model: Any) -> None:
    made = arguments(model, r"a red \(apple\)", r"dull \[grey\]")
    with torch.no_grad():
        states, negative, *pooled = model.encode_prompt(
            "a red (apple)", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt="dull [grey]",
        )  # fmt: skip
    assert torch.equal(made["prompt_embeds"], states)
    if "negative_prompt_embeds" in made:
        assert torch.equal(made["negative_prompt_embeds"], negative)
    else:
        assert "LatentConsistency" in type(model).__name__
    assert ("pooled_prompt_embeds" in made) == bool(pooled)
    if pooled:
        assert torch.equal(made["pooled_prompt_embeds"], pooled[0])
        assert torch.equal(made["negative_pooled_prompt_embeds"], pooled[1])


def test_a_long_prompt_is_its_chunks_one_after_the_other(model: Any) -> None:
    made = arguments(model, words(75) + " a house", "dull BREAK grey BREAK small")
    takes_negative = "negative_prompt_embeds" in made
    chunks = [words(75), "a house", ""]
    assert torch.equal(made["prompt_embeds"], reference(model, *chunks[: 3 if takes_negative else 2]))
    if takes_negative:
        assert torch.equal(made["negative_prompt_embeds"], reference(model, "dull", "grey", "small"))
    if "pooled_prompt_embeds" in made:  # of the second encoder's first chunk
        tokens = model.tokenizer_2([words(75), "dull"], padding="max_length", max_length=77, return_tensors="pt")
        with torch.no_grad():
            first, dull = (model.text_encoder_2(ids[None])[0] for ids in tokens.input_ids)
        assert torch.equal(made["pooled_prompt_embeds"], first)
        assert torch.equal(made["negative_pooled_prompt_embeds"], dull)


def test_weights_multiply_the_states_and_the_mean_stays(model: Any) -> None:
    states = arguments(model, "a (red:1.5) apple")["prompt_embeds"]
    plain = reference(model, "a red apple")
    first, last = (len(model.tokenizer(text, add_special_tokens=False).input_ids) for text in ("a", "a red"))
    expected = plain.clone()
    expected[:, 1 + first : 1 + last] *= 1.5
    for part, whole in zip(expected.split(tiny_models.WIDTH, -1), plain.split(tiny_models.WIDTH, -1), strict=True):
        part *= whole.mean() / part.mean()
    torch.testing.assert_close(states, expected)
    assert not torch.equal(states, plain)


def test_clip_skip_is_diffusers_own(model: Any) -> None:
    made = arguments(model, "(a:1) house", "dull", clip_skip=1)
    skipped = -3 if hasattr(model, "text_encoder_2") else -2
    assert torch.equal(made["prompt_embeds"], reference(model, "a house", hidden=skipped))
    if "negative_prompt_embeds" in made:
        assert torch.equal(made["negative_prompt_embeds"], reference(model, "dull"))


def test_a_negative_prompt_without_guidance_changes_nothing() -> None:
    made = arguments(tiny_models.make("turbo"), "(a) house", words(400), guidance_scale=1.0)
    assert made["prompt_embeds"].shape[1] == 77 and not made.keys() & {"negative_prompt", "negative_prompt_embeds"}


def test_twenty_chunks_are_the_most() -> None:
    pipeline = tiny_models.make("sd1")
    assert arguments(pipeline, words(1500))["prompt_embeds"].shape == (1, 20 * 77, tiny_models.WIDTH)
    sentence = "negative_prompt has more than 20 chunks of 75 tokens: shorten it"
    with pytest.raises(InvalidRequest, match=sentence):
        arguments(pipeline, "x", words(1501))
    with pytest.raises(InvalidRequest, match="prompt has more than 20 chunks"):
        arguments(pipeline, "apple BREAK " * 21)


def test_jobs_of_a_request_share_what_one_has_encoded() -> None:
    pipeline, prompts = tiny_models.make("sd1"), Prompts(words(80), "")
    given = {"prompt": words(80), "negative_prompt": "", "guidance_scale": 7.5}
    with torch.no_grad():
        first, second = (prompts.arguments_for(pipeline, given) for _ in range(2))
    assert first["prompt_embeds"] is second["prompt_embeds"]


def test_weights_keep_half_precision() -> None:
    pipeline = tiny_models.make("sdxl").to(dtype=torch.float16)
    states = arguments(pipeline, "a (red:1.5) apple")["prompt_embeds"]
    assert states.dtype == torch.float16 and states.isfinite().all()


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_familys_pipelines_take_a_long_prompt(family: str, tmp_path: Path) -> None:
    tasks = ("masking",) if family == "inpainting" else TASKS
    pipelines = load(tiny_models.save(family, tmp_path), *tasks)
    for task in tasks:
        requests = [a_request(task, f"{words(90)} {end}", 1, 5, 7.5) for end in ("house", "cat")]
        first, second = (np.asarray(image) for image in generated_together(pipelines, requests)[0])
        assert not np.array_equal(first, second)
