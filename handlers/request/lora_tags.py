"""`<lora:name:0.8>` in a prompt, in the syntax of AUTOMATIC1111's web UI (`extra_networks.py`). Imports no torch."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from handlers.errors import InvalidRequest

SHOWN = 100  # characters of a tag that a sentence repeats
MAX_LORAS = 16  # of a prompt
MAX_WEIGHT = 10.0  # of either sign: beyond it, half precision overflows

_TAG = re.compile(r"<(\w+):([^<>]+)>")
_KINDS = ("lora", "lyco")  # the second is what an extension called the same files
_PLACES = ("te", "unet", "dyn")  # what the numbers after the name are, in their order
_SYNTAX = "write <lora:name:0.8>, <lora:name:0.8:0.6> for the text encoder and the UNet, or te= and unet="


@dataclass(frozen=True)
class LoraTag:
    """A LoRA by its file's stem, and how strongly it changes the text encoders and the UNet."""

    name: str
    text_encoder: float = 1.0
    unet: float = 1.0


def take_tags(text: str) -> tuple[str, tuple[LoraTag, ...], tuple[str, ...]]:
    """A prompt without its tags; its LoRAs, each once, by name; and the tags for `tag_warnings`.

    Of a LoRA that is named twice the weights add up.

    Raises InvalidRequest for a faulty tag, or more than MAX_LORAS.
    """
    weights: dict[str, tuple[float, float]] = {}
    others: list[str] = []
    for found in _TAG.finditer(text):
        if found[1].lower() not in _KINDS:
            others.append(found[0])
            continue
        tag, is_dynamic = _read(f"{found[0][:SHOWN]} in prompt", found[2].split(":"))
        others += [found[0]] if is_dynamic else []
        before = weights.get(tag.name, (0.0, 0.0))
        weights[tag.name] = before[0] + tag.text_encoder, before[1] + tag.unet
    if len(weights) > MAX_LORAS:
        raise InvalidRequest(f"prompt has {len(weights)} LoRAs: at most {MAX_LORAS} can be used at once.")
    tags = tuple(LoraTag(name, *weights[name]) for name in sorted(weights))
    for tag in tags:
        if abs(most := max(tag.text_encoder, tag.unet, key=abs)) > MAX_WEIGHT:
            raise InvalidRequest(
                f"The LoRA {tag.name[:SHOWN]} has the weight {most:g}: weights are from -{MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}."
            )
    return _TAG.sub("", text), tags, tuple(others)


def drop_tags(text: str) -> tuple[str, bool]:
    """A negative prompt without its tags, none of which has an effect, and whether it had any."""
    without = _TAG.sub("", text)
    return without, without != text


def tag_warnings(others: Sequence[str], negative_has_tags: bool) -> list[str]:
    """Sentences about tags without effect: those of other kinds, third numbers, and any in a negative prompt."""
    warnings = [f"{tag[:SHOWN]} in prompt {_without_effect(tag)}." for tag in others[:5]]
    if negative_has_tags:
        warnings.append("A tag such as <lora:…> has no effect in negative_prompt: it belongs into prompt.")
    return warnings


def _without_effect(tag: str) -> str:
    if tag[1:].partition(":")[0].lower() in _KINDS:
        return "has a dynamic rank, which has no effect here"
    return "has no effect: of such tags, only <lora:…> is known here"


def _read(source: str, parts: Sequence[str]) -> tuple[LoraTag, bool]:
    """`name[:te[:unet[:dyn]]]`, or `te=`, `unet=` and `dyn=` in any place; and whether it has a `dyn`.

    The UNet's weight is the text encoder's unless given. `dyn` is the web UI's "dynamic rank"; it ignores what follows.
    """
    name, *values = (part.strip() for part in parts)
    named: dict[str, float] = {}
    places = iter(_PLACES)
    for value in values:
        key, sign, number = value.rpartition("=")
        if not sign and (key := next(places, "")) == "":
            break
        if (key := key.strip()) not in _PLACES or key in named or not name:
            raise InvalidRequest(f"{source} is not understood: {_SYNTAX}.")
        named[key] = _number(number.strip(), source)
    text_encoder = named.get("te", 1.0)
    return LoraTag(name, text_encoder, named.get("unet", text_encoder)), "dyn" in named


def _number(text: str, source: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidRequest(f"{source} has the weight {text!r}, which is not a number: {_SYNTAX}.")
    return value
