"""The LoRAs of a folder, for one model: loaded when a prompt first uses them, and kept within a bound.

They are peft's unfused adapters, so requests with unlike LoRAs run side by side on one set of weights. diffusers' own
`load_lora_weights` reads the files, in its layout and in that of kohya's scripts.
"""

import contextlib
import copy
import itertools
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from handlers.errors import InvalidRequest
from handlers.forward.adapters import Adapters, Twin
from handlers.pipelines.families import DENOISERS, denoiser_name
from handlers.pipelines.named_files import NamedFile, NamedFiles, named, nearest
from handlers.pipelines.prompt_cache import RememberingEncoder
from handlers.request.lora_tags import LoraTag

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors",)  # others are pickled
PARTS = (*DENOISERS, "text_encoder", "text_encoder_2")
# what other kinds of networks have in the names of their weights; diffusers would leave DoRA's out and say nothing
OTHER_KINDS = {"hada_w": "LoHa", "lokr_w": "LoKr", "dora_scale": "DoRA", "oft_": "OFT"}


@dataclass(frozen=True)
class ChosenLora:
    """A LoRA of a prompt: its tag and its file."""

    tag: LoraTag
    file: NamedFile


@dataclass(frozen=True)
class LentParts:
    """What a job's pipeline has instead of its own parts.

    Attributes:
        adapters: that its denoiser's calls pass through; None without any.
        encoders: the text encoders that a LoRA changes, by their names in the pipeline.
    """

    adapters: Adapters | None = None
    encoders: Mapping[str, Any] = field(default_factory=dict)


Lend = Callable[[], contextlib.AbstractContextManager[LentParts]]


@dataclass
class _Loaded:
    """An adapter in the twins. `users` are the jobs that run with it."""

    adapter: str
    bytes: int
    parts: Sequence[str]
    users: int = 0


class Loras:
    """`choose` is for any thread; `lend` for the engine's, within a job.

    Args:
        pipeline: one of the model's; nothing about it or its modules is changed.
        files: of the folder.
        max_bytes: of the files of all LoRAs that are kept loaded; more only while jobs use them.
    """

    def __init__(self, pipeline: Any, files: NamedFiles, max_bytes: int) -> None:
        self.files = files
        self._pipeline = pipeline
        self._max_bytes = max_bytes
        self._twins: dict[str, Twin] = {}  # by part, made when the first LoRA is loaded
        self._loaded: OrderedDict[NamedFile, _Loaded] = OrderedDict()  # the least recently used first
        self._numbers = itertools.count(1)

    def choose(self, tags: Sequence[LoraTag]) -> tuple[list[ChosenLora], list[str]]:
        """The files of a prompt's tags, and a sentence for each tag without one.

        Raises InvalidRequest for a file that is not a LoRA.
        """
        files = self.files.all() if tags else {}
        chosen, doubts = [], []
        for tag in tags:
            if file := named(files, tag.name):
                _check(file)
                chosen.append(ChosenLora(tag, file))
            else:
                doubts.append(
                    f"There is no LoRA {tag.name[:100]}, so it has no effect; {nearest(files, tag.name)} (GET /models)."
                )
        return chosen, doubts

    @contextlib.contextmanager
    def lend(self, chosen: Sequence[ChosenLora]) -> Iterator[LentParts]:
        """Loads them, unless they are loaded, and keeps them so while the context is open.

        Raises InvalidRequest for a LoRA that does not fit the model.
        """
        used: list[_Loaded] = []
        try:
            for one in chosen:
                used.append(self._load(one.file))
                used[-1].users += 1
            self._trim()
            pairs = [(one.tag, loaded) for one, loaded in zip(chosen, used, strict=True)]
            adapters = {part: own for part in PARTS if (own := self._adapters(part, pairs)) is not None}
            encoders = {part: self._encoder(part, own) for part, own in adapters.items() if part not in DENOISERS}
            yield LentParts(adapters.get(denoiser_name(self._pipeline)), encoders)
        finally:
            for loaded in used:
                loaded.users -= 1
            self._trim()

    @property
    def loaded(self) -> list[str]:
        """The names of those that are loaded, the least recently used first."""
        return [file.name for file in self._loaded]

    def _adapters(self, part: str, pairs: Sequence[tuple[LoraTag, _Loaded]]) -> Adapters | None:
        """What a part passes through; None where no LoRA changes it, so that the plain one serves."""
        acting = [
            (loaded.adapter, weight, tag.name)
            for tag, loaded in pairs
            if part in loaded.parts and (weight := tag.unet if part in DENOISERS else tag.text_encoder)
        ]
        if not acting:
            return None
        weights = tuple((adapter, weight) for adapter, weight, _ in acting)
        return Adapters(self._twins[part], weights, ", ".join(f"{name}:{weight:g}" for _, weight, name in acting))

    def _encoder(self, part: str, adapters: Adapters) -> RememberingEncoder:
        plain = getattr(self._pipeline, part)
        remembering = plain if isinstance(plain, RememberingEncoder) else RememberingEncoder(plain)
        return remembering.variant(adapters, adapters.twin.module, lambda: contextlib.nullcontext(adapters.module()))

    def _load(self, file: NamedFile) -> _Loaded:
        if file in self._loaded:
            self._loaded.move_to_end(file)
            return self._loaded[file]
        for other in [one for one, loaded in self._loaded.items() if one.path == file.path and not loaded.users]:
            self._unload(other)  # the file as it was before
        for part in PARTS:
            module = getattr(self._pipeline, part, None)
            if module is not None and part not in self._twins:
                self._twins[part] = Twin(module.module if isinstance(module, RememberingEncoder) else module)
        adapter = f"adapter{next(self._numbers):06}"  # peft takes no name with a dot
        own = copy.copy(self._pipeline)
        # past DiffusionPipeline.__setattr__, which would note other classes in the shared configuration
        own.__dict__.update({part: twin.module for part, twin in self._twins.items()})
        try:
            with warnings.catch_warnings(action="ignore"):  # peft warns of every adapter after the first
                own.load_lora_weights(
                    str(file.path.parent), weight_name=file.path.name, adapter_name=adapter, use_safetensors=True
                )
            for twin in self._twins.values():
                twin.collect()
            parts = [part for part, twin in self._twins.items() if twin.has(adapter)]
            if not parts:
                raise ValueError("none of its weights belongs to a part of the model")
        except BaseException as error:  # made for another model, as a rule
            for twin in self._twins.values():
                twin.remove(adapter)
            if isinstance(error, torch.OutOfMemoryError) or not isinstance(error, Exception):
                raise
            logger.warning("The LoRA %s does not fit: %s", file.path, error)
            raise InvalidRequest(
                f"The LoRA {file.name} does not fit this model: it was made for another one, or it is damaged."
            ) from None
        self._loaded[file] = loaded = _Loaded(adapter, file.bytes, parts)
        return loaded

    def _trim(self) -> None:
        """Unloads the least recently used ones beyond the bound, but none that a job runs with."""
        excess = sum(loaded.bytes for loaded in self._loaded.values()) - self._max_bytes
        for file, loaded in list(self._loaded.items()):
            if excess > 0 and not loaded.users:
                excess -= loaded.bytes
                self._unload(file)

    def _unload(self, file: NamedFile) -> None:
        adapter = self._loaded.pop(file).adapter
        for twin in self._twins.values():
            twin.remove(adapter)


def _check(file: NamedFile) -> None:
    """Raises InvalidRequest for a file that is not a LoRA, by the names of its weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.path, "pt") as opened:
            names = list(opened.keys())
    except (OSError, SafetensorError):
        raise InvalidRequest(f"The LoRA {file.name} is damaged: its file has no weights.") from None
    for sign, kind in OTHER_KINDS.items():
        if any(sign in name for name in names):
            raise InvalidRequest(f"{file.name} is a {kind}, which cannot be used here: LoRA and LoCon can.")
    if not any("lora" in name for name in names):
        raise InvalidRequest(f"{file.name} is not a LoRA: no weight in its file is called so.")
