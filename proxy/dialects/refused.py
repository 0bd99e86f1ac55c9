"""A failure that a dialect finds, and the sentences of failures in a client's own names of fields."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from proxy.errors import Failure

NO_NAMES: Mapping[str, str] = MappingProxyType({})


class Refused(Failure):
    """A failure that knows what OpenAI's error object has beside its message.

    Args:
        param: the field that must change.
        type: instead of the status's own.
        more: members that only this error has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.param, self.code, self.type, self.more = param, code, type, more or {}


def with_warnings(native: dict[str, Any], warnings: Sequence[str], names: Mapping[str, str]) -> dict[str, Any]:
    """The native answer with a dialect's warnings, and with its own in the client's names."""
    told = [*warnings, *(renamed(text, names) for text in native.get("warnings", []))]
    return native | ({"warnings": told} if told else {})


def renamed(sentence: str, names: Mapping[str, str]) -> str:
    """A native sentence with the client's own names of fields.

    A name of one word, such as `strength`, may be plain English. It counts as a name only before `=`.
    """
    return re.sub(r"\b[a-z]+(?:_[a-z0-9]+)+\b|\b[a-z]+(?==)", lambda word: names.get(word[0], word[0]), sentence)


def named_first(sentence: str) -> str:
    """The native field that a native sentence begins with, if it begins with one."""
    first = re.match(r"[a-z][a-z0-9_]*", sentence)
    return first[0] if first else ""
