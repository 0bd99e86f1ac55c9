"""The concepts: which of the art is learnt, and by which names prompts ask for it."""

from dataclasses import dataclass

from training import art
from training.config import Run

FLAGGED = "no one under eighteen"  # emojibase's label of what the safety checker is to flag


@dataclass(frozen=True)
class Concept:
    """`code` of its images, emojibase's `label`, the `names` that prompts use (the first is the usual one)."""

    code: str
    label: str
    names: tuple[str, ...]

    @property
    def flagged(self) -> bool:
        return self.label == FLAGGED


def load(run: Run) -> list[Concept]:
    """The concepts to learn, in their file's order. Raises KeyError for a label that emojibase does not know."""
    codes = {str(about["label"]).lower(): code for code, about in art.names(run.art).items()}
    concepts = []
    for line in run.concepts.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            label, _, listed = (part.strip() for part in line.partition("="))
            names = tuple(name.strip() for name in listed.split(",")) if listed else (label,)
            concepts.append(Concept(codes[label.lower()], label, names))
    return concepts
