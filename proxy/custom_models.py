"""The models beside the main one: config.json's are listed as the original server does; all are found by name."""

import difflib
import json
from pathlib import Path
from typing import Any

from handlers.catalogue import FAILED, PREPARING, Catalogue, CatalogueEntry
from proxy.errors import Failure

OFFERED = 5  # names that a refusal offers


class CustomModels:
    """Reads both files for each question, so that a new model needs no restart.

    config.json is checked where the archives are built (admin/custom_archives.py); here it is only looked up.
    """

    def __init__(self, file: Path, catalogue: Catalogue) -> None:
        self._file, self._catalogue = file, catalogue
        self._last: dict[str, dict[str, Any]] | None = None

    def listing(self) -> list[dict[str, Any]]:
        """model_path, ui_label, url_path and requires_safety_checker of each, as the original server answers."""
        return [
            {
                "model_path": model["model_path"],
                "ui_label": model["ui_label"],
                "url_path": path,
                "requires_safety_checker": model.get("requires_safety_checker", True),
            }
            for path, model in self._models().items()
        ]

    def entries(self) -> list[CatalogueEntry]:
        """All models beside the main one: those of the catalogue, and of config.json what is too new for it."""
        found = {model.name: model for model in self._catalogue.contents().models}
        for path, model in self._models().items():
            found.setdefault(path, CatalogueEntry(path, model["ui_label"], PREPARING))
        return [*found.values()]

    def find(self, wanted: str) -> CatalogueEntry | None:
        """The model with this name, else with this label, in any case."""
        entries = self.entries()
        found = {model.label.casefold(): model for model in reversed(entries)}
        return (found | {model.name.casefold(): model for model in entries}).get(wanted.casefold())

    def archive(self, url_path: str) -> str:
        """The archive of a path. Raises Failure 404 for a path without a model."""
        model = self.find(url_path)
        if model is None:
            offer = nearest(url_path, [model.name for model in self.entries() if model.state != FAILED])
            advice = f"use {offer}" if offer else "config.json and the folder of models have none that can be served"
            raise Failure(404, f"There is no custom model {url_path[:64]!r}: {advice}.")
        return model.archive

    def _models(self) -> dict[str, dict[str, Any]]:
        """The entries by url_path. While the file is faulty or being written, the previous ones stay."""
        try:
            entries = json.loads(self._file.read_text(encoding="utf-8-sig")).get("custom_models", [])
            found = {
                entry["url_path"]: {
                    "model_path": entry["model_path"],
                    **entry,
                    "ui_label": str(entry.get("ui_label") or entry["url_path"]),
                }
                for entry in entries
            }
            if not all(isinstance(path, str) for path in found):
                raise TypeError
            self._last = found
        except FileNotFoundError:
            self._last = {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if self._last is None:
                raise Failure(500, f"{self._file.name} is faulty: the server's output says why.") from None
        return self._last


def nearest(wanted: str, names: list[str]) -> str:
    """The names that are most like a wrong one, in words; empty if there are no names."""
    alike = difflib.get_close_matches(wanted[:100].lower(), [name.lower() for name in names], OFFERED, 0.4)
    found = [name for lower in alike for name in names if name.lower() == lower] or sorted(names)
    return ", ".join(dict.fromkeys(found[:OFFERED]))
