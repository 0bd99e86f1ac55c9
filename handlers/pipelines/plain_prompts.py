"""Prompts for models whose text encoders read sentences: the stock pipeline encodes them as they are."""

import copy
import threading
from collections.abc import Mapping
from inspect import signature
from typing import Any

from handlers.pipelines.embeddings import Embeddings
from handlers.pipelines.families import has_chunked_prompts
from handlers.pipelines.prompts import Prompts, parse_prompt
from handlers.request.lora_tags import tag_warnings, take_tags

CONTENT = "the prompt"  # which a chat's template has once


class PlainPrompts:
    """In place of `prompts.Prompts`, for pipelines without chunked prompts. Nothing but tags is syntax.

    Raises InvalidRequest for a faulty `<lora:…>`.

    Attributes:
        loras: that the prompt names; no tag stays in the text.
        warnings: sentences about syntax that other models understand.
    """

    def __init__(self, prompt: str, negative_prompt: str) -> None:
        prompt, self.loras, others = take_tags(prompt)
        negative_prompt, *tags = take_tags(negative_prompt, "negative_prompt")
        self._texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        parsed = {name: parse_prompt(text) for name, text in self._texts.items()}
        doubts = [
            f"{name}: weights and BREAK are not applied, since this model reads it as plain text."
            for name, own in parsed.items()
            if own.edits or len(own.sections) > 1 or not own.weights <= {1.0}
        ]
        self.warnings = (*tag_warnings(others, tags), *doubts)

    def arguments_for(self, _: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments` of a stock pipeline, with texts that are without their tags."""
        return {name: self._texts.get(name, value) for name, value in arguments.items()}

    def counts(self, tokenizer: Any) -> dict[str, list[int]]:
        """How many tokens each text has, without those that a model adds."""
        texts = self._texts.items()
        return {name: [len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)] for name, text in texts}


AnyPrompts = Prompts | PlainPrompts


def prompts_for(pipeline: Any, prompt: str, negative_prompt: str, embeddings: Embeddings | None = None) -> AnyPrompts:
    """A request's texts, as the pipeline's model reads them. Raises InvalidRequest."""
    if has_chunked_prompts(pipeline):
        return Prompts(prompt, negative_prompt, embeddings)
    return PlainPrompts(prompt, negative_prompt)


class TokenCounter:
    """Counts a model's tokens, with the tokenizer of the text encoder that reads the most of a prompt.

    Args:
        tokenizer: a copy, since the pipelines' own is the engine's: two threads cannot use one.
        most: tokens of a prompt that the model reads; None for all of them.
    """

    def __init__(self, tokenizer: Any, most: int | None = None) -> None:
        self._tokenizer = tokenizer
        self.most = most
        self._lock = threading.Lock()

    @classmethod
    def of(cls, pipeline: Any) -> "TokenCounter":
        tokenizer = copy.deepcopy(_widest(pipeline))
        return cls(tokenizer, None if has_chunked_prompts(pipeline) else _room(pipeline, tokenizer))

    def counts(self, prompts: AnyPrompts) -> dict[str, list[int]]:
        """How many tokens each text has, in each of its chunks."""
        with self._lock:
            return prompts.counts(self._tokenizer)

    def warnings(self, prompts: AnyPrompts) -> list[str]:
        """A sentence for each text that is too long for the model."""
        if self.most is None:
            return []
        return [
            f"{name}: the model reads its first {self.most} tokens, and it has {count}: the rest has no effect."
            for name, (count,) in self.counts(prompts).items()
            if count > self.most
        ]


def _widest(pipeline: Any) -> Any:
    """The last tokenizer that there is: T5's or a Qwen model's, which come after CLIP's."""
    names = ("tokenizer_3", "tokenizer_2", "tokenizer")
    return next(one for name in names if (one := getattr(pipeline, name, None)) is not None)


def _room(pipeline: Any, tokenizer: Any) -> int:
    """The tokens of a prompt that a stock pipeline keeps, by its call's own default."""
    if "CLIP" in type(tokenizer).__name__:
        most = int(tokenizer.model_max_length)
    else:
        most = int(signature(pipeline.__call__).parameters["max_sequence_length"].default)
    own = int(tokenizer.num_special_tokens_to_add())
    # Z-Image's template counts; Qwen-Image's comes off before the cut
    if tokenizer.chat_template and not hasattr(pipeline, "prompt_template_encode"):
        chat = [{"role": "user", "content": CONTENT}]
        frame = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        own = len(tokenizer(frame.partition(CONTENT)[0]).input_ids)
    return most - own
