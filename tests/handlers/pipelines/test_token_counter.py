"""How much of a prompt a model reads, and a warning for what it does not."""

from inspect import signature
from typing import Any

import pytest
import torch

from handlers.pipelines.plain_prompts import PlainPrompts, prompts_for
from handlers.pipelines.token_counter import TokenCounter
from tests.support import tiny_models, tiny_transformers

LETTERS = "abcdefghij" * 110


# the pipelines' own limits, without CLIP's two marks, T5's one, and Z-Image's template up to the prompt
MOST = {"sd3": 255, "sd3_without_t5": 75, "flux_dev": 511, "flux_schnell": 511, "qwen_image": 512, "z_image": 506}


@pytest.fixture(scope="module", params=tiny_transformers.FAMILIES)
def family(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipeline(family: str) -> Any:
    return tiny_transformers.make(family)


def test_a_prompt_is_warned_of_from_the_first_token_that_a_model_does_not_read(family: str, pipeline: Any) -> None:
    counter = TokenCounter.of(pipeline)
    assert counter.most == MOST[family]
    longest = longest_that_fits(counter, "negative_prompt")
    assert not counter.warnings(prompts_for(pipeline, "a house", LETTERS[:longest]))
    (warning,) = counter.warnings(prompts_for(pipeline, "a house", LETTERS[: longest + 1]))
    count = counter.counts(prompts_for(pipeline, "a house", LETTERS[: longest + 1]))["negative_prompt"][0]
    assert warning == (f"negative_prompt has {count} tokens, and the model reads the first {counter.most}: shorten it.")
    beyond, within = LETTERS[:longest], LETTERS[: longest - 1]
    assert encoded(pipeline, beyond + "k").equal(encoded(pipeline, beyond + "m"))
    # CLIP's tokens are words, and Qwen-Image's template is longer here, where each of its letters is a token
    if family not in ("sd3_without_t5", "qwen_image"):
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
