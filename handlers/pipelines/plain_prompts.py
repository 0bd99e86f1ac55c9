"""Prompts for models whose text encoders read sentences: the stock pipeline encodes them as they are."""

from collections.abc import Mapping
from typing import Any

from handlers.pipelines.embeddings import Embeddings
from handlers.pipelines.families import has_chunked_prompts
from handlers.pipelines.prompts import Prompts
from handlers.request.lora_tags import drop_tags, tag_warnings, take_tags
from handlers.request.prompt_syntax import parse_prompt


class PlainPrompts:
    """In place of `prompts.Prompts`, for pipelines without chunked prompts. Nothing but tags is syntax.

    Raises InvalidRequest for a faulty `<lora:…>`.

    Attributes:
        loras: that the prompt names; no tag stays in the text.
        warnings: sentences about syntax that other models understand.
    """

    def __init__(self, prompt: str, negative_prompt: str) -> None:
        prompt, self.loras, others = take_tags(prompt)
        negative_prompt, has_tags = drop_tags(negative_prompt)
        self._texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        parsed = {name: parse_prompt(text) for name, text in self._texts.items()}
        doubts = [
            f"{name}: weights and BREAK are not applied, since this model reads it as plain text."
            for name, own in parsed.items()
            if own.edits or len(own.sections) > 1 or not own.weights <= {1.0}
        ]
        self.warnings = (*tag_warnings(others, has_tags), *doubts)

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
