"""Textual inversion: words of a prompt that stand for learnt vectors, from a folder of small files.

diffusers' `load_textual_inversion` enlarges the vocabulary that all requests share. Here the vectors take the place of
a chunk's token embeddings for one call, so nothing is left behind, and the files may change while the server runs.
"""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from handlers.pipelines.named_files import NamedFile, NamedFiles, named
from handlers.pipelines.prompt_cache import RememberingEncoder

logger = logging.getLogger(__name__)

SAFE, PICKLED = (".safetensors",), (".pt", ".bin")  # the suffixes of the files
ENCODERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
KEYS = {"tokenizer": "clip_l", "tokenizer_2": "clip_g"}  # of the files for SDXL


@dataclass(frozen=True, eq=False)
class Embedding:
    """`vectors` are (count, width) for each tokenizer of a model, the count the same for all of them."""

    name: str
    vectors: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))


@dataclass(frozen=True)
class Vector:
    """A token that is no word: one vector of an embedding."""

    embedding: Embedding
    index: int


def suffixes(allow_pickle: bool) -> tuple[str, ...]:
    """Of the files that are read."""
    return SAFE + PICKLED if allow_pickle else SAFE


class Embeddings:
    """The embeddings of a folder, for one model. For any thread.

    Args:
        pipeline: one of the model's.
        files: of the folder.
    """

    def __init__(self, pipeline: Any, files: NamedFiles) -> None:
        self.files = files
        self._pipeline = pipeline
        self._read: dict[NamedFile, Embedding | str] = {}  # or why it cannot be used

    def used_in(self, texts: Iterable[str]) -> tuple["Words", list[str]]:
        """The embeddings whose names are words of `texts`, and a sentence for each that cannot be used."""
        files = self.files.all()
        for gone in {*self._read} - {*files.values()}:  # a copy first: another thread may add one meanwhile
            self._read.pop(gone, None)
        found: dict[str, Embedding] = {}
        warnings: list[str] = []
        pattern = Words(files).pattern
        names = dict.fromkeys(word for text in texts for word in pattern.findall(text))
        for file in {file: None for name in names if (file := named(files, name))}:
            embedding = self._read[file] = self._read.get(file) or self._load(file)
            if isinstance(embedding, str):
                warnings.append(f"The embedding {file.name} cannot be used, so its name is plain text: {embedding}")
            else:
                found[file.name] = embedding
        return Words(found), warnings

    def _load(self, file: NamedFile) -> Embedding | str:
        """An embedding, or the end of a sentence that says why there is none."""
        try:
            given = _tensors(file)
        except Exception as error:  # a damaged file, or one of something else
            logger.warning("The embedding %s cannot be read: %s", file.path, error)
            return "its file is damaged, or holds something else."
        tokenizers = [name for name in ENCODERS if getattr(self._pipeline, name, None) is not None]
        wanted = {name: getattr(self._pipeline, ENCODERS[name]).config.hidden_size for name in tokenizers}
        vectors = {
            name: given.get(KEYS[name] if len(given) > 1 else "", torch.empty(0, 0)).float() for name in tokenizers
        }
        widths = {name: tensor.shape[-1] for name, tensor in vectors.items()}
        counts = {len(tensor) for tensor in vectors.values()}
        if len(given) != len(tokenizers) or widths != wanted or len(counts) != 1:
            return "it was made for another model."
        if not all(tensor.isfinite().all() for tensor in vectors.values()):
            return "its numbers are not finite."
        room = min(getattr(self._pipeline, name).model_max_length - 2 for name in tokenizers)
        if not 1 <= max(counts) <= room:
            return f"it has {max(counts)} vectors, and at most {room} fit between the marks of a prompt."
        return Embedding(file.name, vectors)


class Words:
    """Finds the names of `embeddings` in texts, as whole words, in any case; of two that overlap, the longer one."""

    def __init__(self, embeddings: Mapping[str, Any]) -> None:
        self._embeddings = {name.lower(): embedding for name, embedding in embeddings.items()}
        names = "|".join(re.escape(name) for name in sorted(self._embeddings, key=len, reverse=True))
        self.pattern = re.compile(rf"(?<!\w)({names})(?!\w)" if names else r"(?!)()", re.IGNORECASE)

    def split(self, text: str) -> Iterator[str | Embedding]:
        """The text between the embeddings, and the embeddings."""
        for index, part in enumerate(self.pattern.split(text)):
            if index % 2:
                yield self._embeddings[part.lower()]
            elif part:
                yield part


def with_vectors(encoder: Any, tokenizer: str, vectors: Mapping[int, Vector]) -> RememberingEncoder:
    """A text encoder that reads vectors in place of the tokens at some positions of a text.

    Args:
        tokenizer: the name of the encoder's tokenizer in the pipeline.
    """
    remembering = encoder if isinstance(encoder, RememberingEncoder) else RememberingEncoder(encoder)

    @contextlib.contextmanager
    def prepare() -> Iterator[None]:
        def replace(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()  # (1, 77, width)
            for position, vector in vectors.items():
                output[:, position] = vector.embedding.vectors[tokenizer][vector.index].to(output)
            return output

        hook = remembering.module.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()

    return remembering.variant(tuple(vectors.items()), remembering.module, prepare)


def _tensors(file: NamedFile) -> dict[str, torch.Tensor]:
    """(count, width) each: of a file for SDXL two, by its own names; otherwise one, under an empty name.

    Raises whatever its reader does for a file that is no embedding.
    """
    if file.path.suffix.lower() in SAFE:
        from safetensors.torch import load_file

        content: dict[str, Any] = load_file(file.path)
    else:
        content = torch.load(file.path, map_location="cpu", weights_only=True)
    content = dict(content.get("string_to_param", content))  # which the web UI's files have
    if set(KEYS.values()) <= content.keys():
        content = {name: content[name] for name in KEYS.values()}
    elif len(content) == 1 or "emb_params" in content:
        content = {"": content.get("emb_params", next(iter(content.values())))}
    else:
        raise ValueError(f"it has {len(content)} entries")
    return {name: tensor.detach().reshape(-1, tensor.shape[-1]) for name, tensor in content.items()}
