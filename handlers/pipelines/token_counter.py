"""How many tokens a prompt has, and how many of them a model reads."""

import copy
import threading
from inspect import signature
from typing import Any

from handlers.pipelines.families import has_chunked_prompts
from handlers.pipelines.plain_prompts import AnyPrompts

CONTENT = "the prompt"  # which a chat's template has once


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
            f"{name} has {count} tokens, and the model reads the first {self.most}: shorten it."
            for name, (count,) in self.counts(prompts).items()
            if count > self.most
        ]


def _widest(pipeline: Any) -> Any:
    """The tokenizer of the last text encoder that there is: T5 or a Qwen model, which come after CLIP."""
    suffixes = (suffix for suffix in ("_3", "_2", "") if getattr(pipeline, f"text_encoder{suffix}", None) is not None)
    return getattr(pipeline, f"tokenizer{next(suffixes)}")


def _room(pipeline: Any, tokenizer: Any) -> int | None:
    """The tokens of a prompt that a stock pipeline keeps, by its call's own default; None if it has none."""
    parameters = signature(pipeline.__call__).parameters
    if "CLIP" in type(tokenizer).__name__:
        most = int(tokenizer.model_max_length)
    elif "max_sequence_length" in parameters:
        most = int(parameters["max_sequence_length"].default)
    else:
        return None
    own = int(tokenizer.num_special_tokens_to_add())
    # Z-Image's template counts; Qwen-Image's comes off before the cut
    if tokenizer.chat_template and not hasattr(pipeline, "prompt_template_encode"):
        chat = [{"role": "user", "content": CONTENT}]
        frame = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        own = len(tokenizer(frame.partition(CONTENT)[0]).input_ids)
    return most - own
