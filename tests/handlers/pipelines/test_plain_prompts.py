"""Prompts that a stock pipeline reads as they are: what is no syntax there, and how much of one a model reads."""

from inspect import signature
from typing import Any

import pytest
import torch

from handlers.pipelines.plain_prompts import PlainPrompts, TokenCounter, prompts_for
from tests.support import tiny_models, tiny_transformers

LETTERS = "abcdefghij" * 110


@pytest.fixture(scope="module", params=tiny_transformers.FAMILIES)
def pipeline(request: Any) -> Any:
    return tiny_transformers.make(request.param)


def test_weights_are_named_and_tags_are_taken() -> None:
    prompts = PlainPrompts("a (red:1.3) house <lora:mine:0.5>", "plain")
    assert [tag.name for tag in prompts.loras] == ["mine"]
    assert prompts.warnings == ("prompt: weights and BREAK are not applied, since this model reads it as plain text.",)


def test_a_prompt_is_warned_of_from_the_first_token_that_a_model_does_not_read(pipeline: Any) -> None:
    counter = TokenCounter.of(pipeline)
    assert counter.most is not None and 70 < counter.most <= 512
    longest = longest_that_fits(counter, "negative_prompt")
    assert not counter.warnings(prompts_for(pipeline, "a house", LETTERS[:longest]))
    (warning,) = counter.warnings(prompts_for(pipeline, "a house", LETTERS[: longest + 1]))
    count = counter.counts(prompts_for(pipeline, "a house", LETTERS[: longest + 1]))["negative_prompt"][0]
    assert warning == (
        f"negative_prompt: the model reads its first {counter.most} tokens, and it has {count}: the rest has no effect."
    )
    beyond, within = LETTERS[:longest], LETTERS[: longest - 1]
    assert encoded(pipeline, beyond + "k").equal(encoded(pipeline, beyond + "m"))
    # CLIP's tokens are words, and Qwen-Image's template is longer here, where each of its letters is a token
    if "CLIP" not in type(pipeline.tokenizer).__name__ and "Qwen" not in type(pipeline).__name__:
        assert not encoded(pipeline, within + "k").equal(encoded(pipeline, within + "m"))


def longest_that_fits(counter: TokenCounter, name: str) -> int:
    fits = [n for n in range(1, len(LETTERS)) if counter.counts(PlainPrompts("", LETTERS[:n]))[name][0] <= counter.most]
    return max(fits)


def encoded(pipeline: Any, prompt: str) -> torch.Tensor:
    """What the transformer gets of a prompt, with the call's own limits."""
    most = signature(pipeline.__call__).parameters["max_sequence_length"].default
    given = {"prompt": prompt, "max_sequence_length": most}
    for name in ("prompt_2", "prompt_3"):
        if name in signature(pipeline.encode_prompt).parameters:
            given[name] = None
    with torch.no_grad():
        first = pipeline.encode_prompt(**given)[0]
    return first[0] if isinstance(first, list) else first


def test_chunks_have_no_end() -> None:
    pipeline = tiny_models.make("sd1")
    counter = TokenCounter.of(pipeline)
    prompts = prompts_for(pipeline, "word " * 200, "")
    assert len(counter.counts(prompts)["prompt"]) == 3
    assert not counter.warnings(prompts)
