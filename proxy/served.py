"""What the archives serve, as routes need it before a request: names of models, and their defaults."""

import time
from collections.abc import Callable
from typing import Any

from handlers.catalogue import FAILED
from proxy.custom_models import CustomModels, nearest
from proxy.errors import Failure
from proxy.loading import Loading
from proxy.upstream import Upstream

FRESH_S = 30  # a description is asked for again after that: a reload may have brought another model
DEFAULT = "default"  # the name of the main model, whatever it is


class UnknownModel(Failure):
    """There is no model of a name; the sentence offers those that are most like it."""


class Served:
    """Descriptions of archives, asked for once in a while: an archive answers between two steps."""

    def __init__(
        self, loading: Loading, upstream: Upstream, custom: CustomModels, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loading, self._upstream, self._custom, self._clock = loading, upstream, custom, clock
        self._known: dict[str, tuple[float, list[dict[str, Any]]]] = {}

    async def defaults(self, archive: str, task: str) -> dict[str, Any]:
        """The defaults of the model that does a task, as `model`."""
        found: dict[str, Any] = (await self.model(archive, task))["defaults"]
        return found

    async def limits(self, archive: str, task: str) -> dict[str, int]:
        """Its limits, as `model`."""
        found: dict[str, int] = (await self.model(archive, task))["limits"]
        return found

    async def model(self, archive: str, task: str) -> dict[str, Any]:
        """The model that does a task, as in `GET /models`. Raises Failure 503."""
        models = await self._described(archive)
        return next((model for model in models if task in model["tasks"]), models[0])

    async def models(self) -> list[str]:
        """The names of the models of the tasks, each once. Raises Failure 503."""
        names: list[str] = []
        for archive in self._upstream.archives():
            names += [model["model"] for model in await self._described(archive)]
        return [*dict.fromkeys(names)]

    def others(self) -> list[str]:
        """The names of the other models, which may or may not be in memory, but for those that cannot be served."""
        return [model.name for model in self._custom.entries() if model.state != FAILED]

    async def archive(self, wanted: str, task: str) -> str:
        """The archive of a task with the model that a request names.

        Args:
            wanted: a name or a label; empty or DEFAULT for the main one.

        Raises UnknownModel 400.
        """
        if wanted in ("", DEFAULT):
            return self._upstream.archive_of(task)
        if model := self._custom.find(wanted):
            return model.archive
        main = await self.models()
        if wanted.casefold() in map(str.casefold, main):
            return self._upstream.archive_of(task)
        offer = nearest(wanted, [*main, *self.others()])
        raise UnknownModel(400, f"model {wanted[:100]!r} is not one of the models here: use {offer}.")

    async def _described(self, archive: str) -> list[dict[str, Any]]:
        asked, described = self._known.get(archive, (0.0, []))
        if not described or self._clock() > asked + FRESH_S:
            try:
                described = await self._loading.describe(archive, may_load=True)
            except Failure:
                if not described:  # otherwise its worker is being restarted, and will serve the same
                    raise
            self._known[archive] = self._clock(), described
        return described
