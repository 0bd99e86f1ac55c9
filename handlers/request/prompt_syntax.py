"""The syntax of prompts, that of AUTOMATIC1111's web UI (docs/prompts.md). The source is its `prompt_parser.py`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

FACTORS = {"(": 1.1, "[": 1 / 1.1}
CLOSING = {"(": ")", "[": "]"}
SHOWN = 50  # characters of what is not understood that a warning repeats

_SIGNS = re.compile(
    r"""
    \\[\\()\[\]]                                            # an escaped sign
    | :\s*(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\)  # the end of (word:1.3)
    | [()\[\]:|\\]
    | \bBREAK\b
    | [^()\[\]:|\\B]+                                       # text
    | B
    """,
    re.VERBOSE,
)

Piece = tuple[str, float]  # text, and its weight


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its syntax.

    Attributes:
        sections: what BREAK separates, each as pieces.
        edits: the places in the source that would change while an image is generated; they stay text.
    """

    sections: tuple[tuple[Piece, ...], ...]
    edits: tuple[str, ...] = ()

    @property
    def weights(self) -> set[float]:
        return {weight for section in self.sections for _, weight in section}


def parse_prompt(text: str) -> ParsedPrompt:
    r"""Reads `(x)`, `(x:1.3)`, `[x]`, their nesting, escapes and BREAK. No text is wrong.

    A bracket that nothing closes holds to the end, as in the web UI; a closing one that closes nothing is text.
    """
    signs = list(_SIGNS.finditer(text))
    factors, closing, edits = _brackets(text, signs)
    weights = [1.0]
    sections: list[list[Piece]] = [[]]
    for index, sign in enumerate(signs):
        if index in factors:
            weights.append(weights[-1] * factors[index])
        elif index in closing:
            weights.pop()
        elif sign[0] == "BREAK":
            sections.append([])
        else:
            literal = sign[0].removeprefix("\\") or sign[0]  # a backslash before other signs is one itself
            section = sections[-1]
            before = section.pop()[0] if section and section[-1][1] == weights[-1] else ""
            section.append((before + literal, weights[-1]))
    return ParsedPrompt(tuple(map(tuple, sections)), tuple(edits))


def _brackets(text: str, signs: Sequence[re.Match[str]]) -> tuple[dict[int, float], set[int], list[str]]:
    """The signs that are brackets of weights, by their index: the opening ones with their factor, and the closing ones.

    The third is the source of each `[a|b]` and `[a:b:0.5]`, as much as is shown. Their brackets are among neither.
    """
    factors: dict[int, float] = {}
    closing: set[int] = set()
    edits: list[tuple[int, int]] = []
    opened: list[int] = []
    edited: set[int] = set()  # of the square ones, those with a | or : of their own
    for index, sign in enumerate(signs):
        innermost = signs[opened[-1]][0] if opened else ""
        if sign[0] in FACTORS:
            opened.append(index)
        elif innermost and sign[0][0] != "\\" and sign[0][-1] == CLOSING[innermost]:
            opening = opened.pop()
            if opening in edited:
                edits.append((signs[opening].start(), sign.end()))
            else:
                factors[opening] = float(sign["weight"] or FACTORS[innermost])
                closing.add(index)
        elif innermost == "[" and sign[0][0] in ":|":
            edited.add(opened[-1])
    for opening in opened:
        if opening in edited:
            edits.append((signs[opening].start(), len(text)))
        else:
            factors[opening] = FACTORS[signs[opening][0]]
    return factors, closing, [text[start : min(end, start + SHOWN + 1)] for start, end in edits]
