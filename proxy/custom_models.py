"""The custom models of config.json: they are listed, and found by path."""

import json
from pathlib import Path
from typing import Any

from handlers.wire import CUSTOM
from proxy.errors import Failure


class CustomModels:
    """Reads the file for each question, so that a new model needs no restart.

    The file is checked where the archives are built (admin/custom_archives.py); here it is only looked up.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: dict[str, dict[str, Any]] | None = None

    def archives(self) -> list[str]:
        return [CUSTOM + url_path for url_path in self._models()]

    def listing(self) -> list[dict[str, Any]]:
        """model_path, ui_label, url_path and requires_safety_checker of each, as the original server answers."""
        return [
            {
                "model_path": model["model_path"],
                "ui_label": model.get("ui_label") or path,
                "url_path": path,
                "requires_safety_checker": model.get("requires_safety_checker", True),
            }
            for path, model in self._models().items()
        ]

    def check(self, url_path: str) -> None:
        """Raises Failure 404 for a path that is not in config.json."""
        models = self._models()
        if url_path not in models:
            known = ", ".join(sorted(models)[:20]) or "none"
            raise Failure(404, f"There is no custom model {url_path[:64]!r}; config.json has {known}.")

    def _models(self) -> dict[str, dict[str, Any]]:
        """The entries by url_path. While the file is faulty or being written, the previous ones stay."""
        try:
            entries = json.loads(self._file.read_text(encoding="utf-8-sig")).get("custom_models", [])
            self._last = {entry["url_path"]: {"model_path": entry["model_path"], **entry} for entry in entries}
        except FileNotFoundError:
            self._last = {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if self._last is None:
                raise Failure(500, f"{self._file.name} is faulty: the server's output says why.") from None
        return self._last
