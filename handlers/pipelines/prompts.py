"""Prompts of any length, with weights, become embeddings, as in AUTOMATIC1111's web UI (docs/prompts.md).

Tokens are encoded in chunks, each with its own begin and end token, since CLIP reads 77 tokens at most. The source is
the web UI's `sd_hijack_clip.py`.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch

from handlers.errors import InvalidRequest
from handlers.pipelines.embeddings import ENCODERS, Embedding, Embeddings, Vector, Words, with_vectors
from handlers.pipelines.named_files import NO_FILES
from handlers.request.lora_tags import drop_tags, tag_warnings, take_tags
from handlers.request.prompt_syntax import SHOWN, ParsedPrompt, parse_prompt

MAX_WEIGHT = 10.0  # of either sign: beyond it, half precision overflows
MAX_CHUNKS = 20

Token = int | Vector
Chunk = Sequence[tuple[Token, float]]  # at most 75 tokens, each with its weight


class Prompts:
    """A request's prompt and negative prompt, which all its jobs share: what one of them encodes, the others reuse.

    Args:
        embeddings: whose names are more than text.

    Raises InvalidRequest for a weight beyond MAX_WEIGHT, or a faulty `<lora:…>`.

    Attributes:
        loras: that the prompt names; no tag stays in the text.
        warnings: sentences about the parts that are not understood.
    """

    def __init__(self, prompt: str, negative_prompt: str, embeddings: Embeddings | None = None) -> None:
        prompt, self.loras, others = take_tags(prompt)
        negative_prompt, has_tags = drop_tags(negative_prompt)
        self._texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        self._parsed = {name: parse_prompt(text) for name, text in self._texts.items()}
        self._embeddings: dict[str, Any] | None = None  # arguments instead of the texts; none for plain prompts
        warnings = tag_warnings(others, has_tags)
        for name, parsed in self._parsed.items():
            if abs(most := max(parsed.weights, key=abs, default=1.0)) > MAX_WEIGHT:
                raise InvalidRequest(
                    f"{name} has the weight {most:g}: weights are from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}."
                )
            if name == "prompt" and re.search(r"\bAND\b", self._texts[name]):
                warnings.append(f"{name} has AND: prompts are not composed here, so this is plain text.")
            if parsed.edits:
                shown = ", ".join(edit if len(edit) <= SHOWN else f"{edit[:SHOWN]}…" for edit in parsed.edits[:5])
                warnings.append(f"{name} has {shown}: prompts do not change between steps here, so this is plain text.")
        pieces = (text for parsed in self._parsed.values() for section in parsed.sections for text, _ in section)
        self._words, doubts = (embeddings or Embeddings(None, NO_FILES)).used_in(pieces)
        self.warnings = (*warnings, *doubts)

    def arguments_for(self, pipeline: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`arguments` of a stock pipeline, with embeddings instead of texts if those are long or have weights.

        The texts are without their tags.

        For the engine's thread, within a job: it calls the pipeline's text encoders.

        Raises InvalidRequest for more than MAX_CHUNKS chunks.
        """
        # a negative prompt without guidance has no effect: it must not lengthen the prompt either
        unused = "negative_prompt" not in arguments or arguments["guidance_scale"] <= 1
        names = ["prompt"] if unused else ["prompt", "negative_prompt"]
        if self._embeddings is None:
            chunks = {name: self._chunks(name, pipeline) for name in names}
            plain = self._is_plain(chunks)
            self._embeddings = {} if plain else _embeddings(pipeline, chunks, arguments.get("clip_skip"))
        if not self._embeddings:
            return {name: self._texts.get(name, value) for name, value in arguments.items()}
        return {name: value for name, value in arguments.items() if name not in self._texts} | self._embeddings

    def counts(self, tokenizer: Any) -> dict[str, list[int]]:
        """How many tokens each chunk of either text has. `tokenizer` is used by no other thread meanwhile.

        Raises InvalidRequest for more than MAX_CHUNKS chunks.
        """
        return {name: [len(chunk) for chunk in self._cut(name, tokenizer)] for name in self._parsed}

    def _chunks(self, name: str, pipeline: Any) -> dict[str, list[Chunk]]:
        """A prompt's chunks for each tokenizer."""
        chunks: dict[str, list[Chunk]] = {}
        for part in ENCODERS:
            if tokenizer := getattr(pipeline, part, None):
                chunks[part] = self._cut(name, tokenizer)
        return chunks

    def _cut(self, name: str, tokenizer: Any) -> list[Chunk]:
        room = tokenizer.model_max_length - 2
        # what is too long is not cut to its end, which would take long
        chunks = [*islice(_cut(self._parsed[name], tokenizer, room, self._words), MAX_CHUNKS + 1)]
        if len(chunks) > MAX_CHUNKS:
            raise InvalidRequest(f"{name} has more than {MAX_CHUNKS} chunks of {room} tokens: shorten it.")
        return chunks or [[]]

    def _is_plain(self, chunks: Mapping[str, Mapping[str, Sequence[Chunk]]]) -> bool:
        """Whether the pipeline itself encodes the texts in the same way."""
        whole = all(self._parsed[name].sections in (((),), (((self._texts[name], 1.0),),)) for name in chunks)
        each = [own for of_text in chunks.values() for own in of_text.values()]
        return whole and all(len(own) == 1 and not _vectors(own[0]) for own in each)


def _cut(parsed: ParsedPrompt, tokenizer: Any, room: int, words: Words) -> Iterator[Chunk]:
    """Chunks of at most `room` tokens. BREAK begins a new one, and so does an embedding that would be cut."""
    for section in parsed.sections:
        chunk: list[tuple[Token, float]] = []
        for text, weight in section:
            for tokens in _tokens(text, tokenizer, words) if text.strip() else ():
                if len(chunk) + len(tokens) > room:
                    yield chunk
                    chunk = []
                chunk += [(token, weight) for token in tokens]
        if chunk:
            yield chunk


def _tokens(text: str, tokenizer: Any, words: Words) -> Iterator[Sequence[Token]]:
    """Those that stay together: each one by itself, an embedding's all."""
    for part in words.split(text):
        if isinstance(part, Embedding):
            yield [Vector(part, index) for index in range(len(part))]
        else:
            yield from ([token] for token in tokenizer(part, add_special_tokens=False, verbose=False).input_ids)


def _vectors(chunk: Chunk) -> dict[int, Vector]:
    """By their position in the 77 tokens, the first of which marks the begin."""
    return {1 + index: token for index, (token, _) in enumerate(chunk) if isinstance(token, Vector)}


def _embeddings(
    pipeline: Any, texts: Mapping[str, Mapping[str, Sequence[Chunk]]], clip_skip: int | None
) -> dict[str, Any]:
    """The arguments of a stock pipeline that stand for `prompt` and `negative_prompt`, all of the same length.

    Args:
        texts: the chunks of each text for each tokenizer.
        clip_skip: as diffusers has it, so for the prompt alone.
    """
    length = max(len(own) for of_text in texts.values() for own in of_text.values())
    arguments = {}
    for name, of_text in texts.items():
        skipped = clip_skip if name == "prompt" else None
        encoded = []
        for index in range(length):
            chunk = {tokenizer: own[index] if index < len(own) else [] for tokenizer, own in of_text.items()}
            encoded.append(_encode(pipeline, chunk, skipped))
        arguments[f"{name}_embeds"] = torch.cat([states for states, _ in encoded], dim=1)
        if (pooled := encoded[0][1]) is not None:
            arguments[f"{name.replace('prompt', 'pooled_prompt')}_embeds"] = pooled
    return arguments


def _encode(
    pipeline: Any, chunk: Mapping[str, Chunk], clip_skip: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the pipeline's own `encode_prompt` makes of a chunk: (1, 77, width), and SDXL's pooled (1, width)."""
    own = copy.copy(pipeline)
    for name, tokens in chunk.items():
        # past DiffusionPipeline.__setattr__, which would look up the stand-in's class and library
        own.__dict__[name] = _ChunkTokenizer(getattr(pipeline, name), [token for token, _ in tokens])
        if vectors := _vectors(tokens):
            own.__dict__[ENCODERS[name]] = with_vectors(getattr(pipeline, ENCODERS[name]), name, vectors)
    states, _, *pooled = own.encode_prompt(
        prompt="", device=pipeline._execution_device, num_images_per_prompt=1, do_classifier_free_guidance=False,
        clip_skip=clip_skip,
    )  # fmt: skip
    # each encoder's part by itself, as the web UI does
    widths = [getattr(pipeline, ENCODERS[name]).config.hidden_size for name in chunk]
    parts = [
        _weighted(part, [weight for _, weight in tokens])
        for part, tokens in zip(states.split(widths, dim=-1), chunk.values(), strict=True)
    ]
    return torch.cat(parts, dim=-1), pooled[0] if pooled else None


def _weighted(states: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The (1, 77, width) states of a begin token, tokens and padding; the tokens times their weights, the mean kept."""
    if set(weights) <= {1.0}:
        return states
    factors = torch.ones(states.shape[1])
    factors[1 : 1 + len(weights)] = torch.tensor(weights)
    exact = states.float()
    scaled = exact * factors.to(states.device)[None, :, None]
    return (scaled * (exact.mean() / scaled.mean())).to(states.dtype)


class _ChunkTokenizer:
    """Stands in for a tokenizer: any text gets a chunk's tokens, padded as the tokenizer pads a text."""

    def __init__(self, tokenizer: Any, tokens: Sequence[Token]) -> None:
        self._tokenizer = tokenizer
        begin = tokenizer.bos_token_id  # and in a vector's place: it is never taken for the end
        ids = [begin, *(begin if isinstance(token, Vector) else token for token in tokens), tokenizer.eos_token_id]
        padding = tokenizer.model_max_length - len(ids)
        self._output = SimpleNamespace(
            input_ids=torch.tensor([ids + [tokenizer.pad_token_id] * padding]),  # (1, 77)
            attention_mask=torch.tensor([[1] * len(ids) + [0] * padding]),
        )

    def __call__(self, *_: Any, **__: Any) -> SimpleNamespace:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)
