"""A text encoder that remembers its last prompts: a prompt of eight images, or an empty one, is encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

ENTRIES = 8  # SDXL keeps all hidden states of a prompt, 8 MB in half precision
MAX_BYTES = 2**28  # beyond which only the last prompt is kept: a language model's hidden states are ten times those


class RememberingEncoder:
    """Stands in for a text encoder: the same tokens get the same output; every other attribute is the real module's.

    The output is the object of the first call, so an image is bit-identical with and without the cache. Nothing writes
    into it: the pipelines make new embeddings from it.

    Attributes:
        module: the text encoder.
    """

    def __init__(self, encoder: Any) -> None:
        self.module = encoder
        self._outputs: OrderedDict[Hashable, Any] = OrderedDict()
        self._changes: tuple[Hashable, ...] = ()
        self._prepare: Callable[[], AbstractContextManager[Any]] = nullcontext

    def variant(
        self, change: Hashable, module: Any, prepare: Callable[[], AbstractContextManager[Any]]
    ) -> "RememberingEncoder":
        """An encoder with other weights or other tokens, which shares this one's memory.

        Args:
            change: what tells its outputs from others.
            module: that encodes.
            prepare: makes the context that a call of the module needs, within that of this encoder.
        """

        @contextmanager
        def prepare_both() -> Iterator[None]:
            with self._prepare(), prepare():
                yield

        other = RememberingEncoder(module)
        other._outputs, other._changes, other._prepare = self._outputs, (*self._changes, change), prepare_both
        return other

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        key = (self._changes, *(_key(value) for value in (*arguments, *sorted(options.items()))))
        if key in self._outputs:
            self._outputs.move_to_end(key)
        else:
            with self._prepare():
                self._outputs[key] = self.module(*arguments, **options)
            while len(self._outputs) > 1 and (len(self._outputs) > ENTRIES or _bytes(self._outputs) > MAX_BYTES):
                self._outputs.popitem(last=False)
        return self._outputs[key]

    @property
    def text_model(self) -> Any:
        """The module with the last norm, which pipelines call past the encoder if layers are skipped.

        From transformers 5 on it is the encoder itself, where diffusers 0.42 still looks for this part.
        """
        hook = getattr(self.module, "_hf_hook", None)
        if hook is not None:  # in low-memory mode the encoder may be out, since its output came from the cache
            hook.pre_forward(self.module)
        return getattr(self.module, "text_model", self.module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def _bytes(outputs: Mapping[Hashable, Any]) -> int:
    tensors = tree_leaves([[*output.values()] for output in outputs.values() if isinstance(output, Mapping)])
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def _key(value: Any) -> Hashable:
    """(1, 77) token ids and the like by their content."""
    if isinstance(value, torch.Tensor):
        return tuple(value.flatten().tolist()), tuple(value.shape), value.dtype
    return tuple(_key(item) for item in value) if isinstance(value, tuple) else value


def remember_prompts(pipelines: list[Any]) -> None:
    """Puts stand-ins before the text encoders of pipelines that share them."""
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        encoder = getattr(pipelines[0], name, None)
        if encoder is not None:
            # a language model's cache is for the words that it would write
            encoder.config.get_text_config().use_cache = False
            remembering = RememberingEncoder(encoder)
            for pipeline in pipelines:
                # past DiffusionPipeline.__setattr__, which would look up the stand-in's class and library
                pipeline.__dict__[name] = remembering
