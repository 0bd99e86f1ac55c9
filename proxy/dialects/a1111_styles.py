"""AUTOMATIC1111's styles: the operator's `styles.csv`, as the web UI writes it, whose texts requests add by name."""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path

from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation
from proxy.errors import Failure

PROMPT = "{prompt}"  # in a style's text: the place of the request's own
PROMPTS = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class Style:
    """A row of the file."""

    name: str
    prompt: str
    negative_prompt: str


class Styles:
    """Reads the file for each question, so that a new style needs no restart.

    Args:
        file: which need not exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def all(self) -> dict[str, Style]:
        """By name, in the order of the file. Raises Failure 500 for a file that cannot be read."""
        try:
            text = self._file.read_text(encoding="utf-8-sig")
            rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            found = [Style(*((row.get(name) or "").strip() for name in ("name", *PROMPTS))) for row in rows]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, csv.Error):
            raise Failure(500, f"{self._file.name} is faulty: its operator can save it as CSV in UTF-8.") from None
        return {style.name: style for style in found if style.name}

    def listing(self) -> list[dict[str, str]]:
        """As `prompt-styles` answers."""
        return [asdict(style) for style in self.all().values()]


def add_styles(fields: Translation, styles: Styles) -> list[str]:
    """Puts both prompts, with the texts of the styles that `styles` names, whose names are returned.

    Raises Refused 422 for anything but a list of names.
    """
    named = fields.take("styles", [])
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise Refused(422, "styles must be a list of names.", "styles")
    known = styles.all() if named else {}
    # each once: a style's text may double the prompt
    used = [name for name in dict.fromkeys(named) if name in known]
    if missing := [name[:50] for name in named if name not in known and name.lower() not in ("", "none")]:
        fields.warnings.append(f"styles: {', '.join(map(ascii, missing[:5]))} not found in the server's styles.csv.")
    for field in PROMPTS:
        text = fields.text(field)
        for name in used:
            text = _styled(text, getattr(known[name], field))
        fields.put(field, field, text)
    return used


def _styled(text: str, style: str) -> str:
    """The web UI's rule: the text takes its place in the style's, or else comes before it."""
    if PROMPT in style:
        return style.replace(PROMPT, text)
    return ", ".join(part for part in (text.strip(), style) if part) if style else text
