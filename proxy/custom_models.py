"""The custom models of config.json: listed, found by their path, and loaded with their first request."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

from handlers.wire import CUSTOM, RequestHead
from proxy.errors import Failure
from proxy.upstream import Events, Upstream


class CustomModels:
    """Reads the file anew for each question, so that adding a model needs no restart.

    Whoever builds the archives checks the file (handlers/custom_models.py); here it is only looked up.
    """

    def __init__(self, file: Path, upstream: Upstream) -> None:
        self._file = file
        self._upstream = upstream
        self._last: dict[str, dict[str, Any]] | None = None
        self._loading: dict[str, asyncio.Task[None]] = {}

    def archives(self) -> list[str]:
        return [CUSTOM + url_path for url_path in self._models()]

    def listing(self) -> list[dict[str, Any]]:
        """model_path, ui_label, url_path and requires_safety_checker of each, as the original answers."""
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
        """Raises Failure 404 for a path that config.json does not have."""
        models = self._models()
        if url_path not in models:
            known = ", ".join(sorted(models)[:20]) or "none"
            raise Failure(404, f"There is no custom model {url_path[:64]!r}; config.json has {known}.")

    async def generate(self, url_path: str, head: RequestHead, body: bytes) -> Events:
        """As Upstream.generate, with the custom model, which is loaded first if need be.

        Loading goes on when the client that began it goes away: the next one needs it, too.
        """
        archive = CUSTOM + url_path
        task = self._loading.get(archive)
        if task is None:
            task = self._loading[archive] = asyncio.create_task(self._upstream.load(archive))
            task.add_done_callback(lambda done: self._loaded(archive, done))
        await asyncio.shield(task)
        async with aclosing(self._upstream.generate(archive, head, body)) as events:
            async for event in events:
                yield event

    def _loaded(self, archive: str, task: asyncio.Task[None]) -> None:
        del self._loading[archive]
        if not task.cancelled():
            task.exception()  # seen here, should every client have gone away

    def _models(self) -> dict[str, dict[str, Any]]:
        """The entries by their url_path. While the file has a fault, or is being written, those before stay."""
        try:
            entries = json.loads(self._file.read_text(encoding="utf-8-sig")).get("custom_models", [])
            self._last = {entry["url_path"]: {"model_path": entry["model_path"], **entry} for entry in entries}
        except FileNotFoundError:
            self._last = {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            if self._last is None:
                raise Failure(500, f"{self._file.name} has a fault: the server's output says which.") from None
        return self._last
