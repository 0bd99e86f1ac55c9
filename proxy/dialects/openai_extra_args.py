"""`<sd_cpp_extra_args>{"steps": 20}</sd_cpp_extra_args>` in a prompt: fields, for servers of stable-diffusion.cpp."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation

NAME = "sd_cpp_extra_args"
BEGIN, END = f"<{NAME}>", f"</{NAME}>"
MAX_LENGTH = 10_000  # characters of the JSON, which is parsed while everybody waits


def take_extra_args(sent: Mapping[str, Any], taken: Collection[str]) -> tuple[Mapping[str, Any], list[str]]:
    """The fields, with those of the prompt in place of those beside it, as there; and sentences for the client.

    Args:
        taken: names of the fields that may stand there. Others are named in a sentence.

    Raises Refused 400 for what is no JSON object.
    """
    prompt = sent.get("prompt")
    if not isinstance(prompt, str) or BEGIN not in prompt:
        return sent, []
    found: dict[str, Any] = {}
    kept, *parts = prompt.split(BEGIN)
    for part in parts:
        text, end, after = part.partition(END)
        found |= _object(text if end else "")
        kept += after
    others = Translation({name: value for name, value in found.items() if name not in taken})
    others.warn_of_rest(f"{NAME}.")
    read = {name: value for name, value in found.items() if name in taken and value not in (None, "")}
    double = sorted(name for name in read if sent.get(name) not in (None, "", read[name]))
    twice = [f"{', '.join(double)}: the value from {NAME} in the prompt was used."] if double else []
    return {**sent, **read, "prompt": kept.strip()}, [*others.warnings, *twice]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=lambda _: None) if len(text) <= MAX_LENGTH else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(400, f'{NAME} in prompt must be a JSON object: {BEGIN}{{"steps": 20}}{END}.', "prompt")
    return value
