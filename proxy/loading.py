"""Archives in memory: loaded with a request for them, and unloaded when nobody has used them for a while."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from handlers.wire import CUSTOM, RequestHead
from proxy.errors import Failure
from proxy.frontend_failures import READY, START_RETRY_S
from proxy.upstream import NO_WORKER, Events, Upstream

logger = logging.getLogger(__name__)

CHECK_S = 10  # how often idle archives are looked for, at most


@dataclass
class _Use:
    """An archive's open requests, and when the last one for an image ended, on the monotonic clock."""

    last: float
    open: int = 0


class Loading:
    """Requests to archives that may not be in memory.

    Args:
        custom: the archives of custom models, by now.
        unload_after_s: seconds without a request for an image after which an archive is unloaded; 0 = never.
    """

    def __init__(self, upstream: Upstream, custom: Callable[[], Collection[str]], unload_after_s: float) -> None:
        self._upstream = upstream
        self._custom = custom
        self._unload_after_s = unload_after_s or math.inf
        self._uses: dict[str, _Use] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._unloading: dict[str, asyncio.Task[None]] = {}
        self._described: dict[str, list[dict[str, Any]]] = {}  # as they were when they were unloaded

    @property
    def _unloads(self) -> bool:
        return self._unload_after_s < math.inf

    async def generate(self, archive: str, head: RequestHead, body: bytes) -> Events:
        """As Upstream.generate, with an archive that is loaded first if necessary."""
        with self._using(archive, counts=True):
            if self._unloads or archive.startswith(CUSTOM):
                await self._load(archive)
            async with aclosing(self._upstream.generate(archive, head, body)) as events:
                async for event in events:
                    yield event

    async def states(self) -> dict[str, str]:
        """As Upstream.states; an archive that is unloaded is ready, since a request for it loads it."""
        states = await self._upstream.states()
        return {task: READY if self._unloads and state == NO_WORKER else state for task, state in states.items()}

    async def archives(self) -> list[str]:
        """The archives of the tasks, and those of custom models that are loaded."""
        return await self._upstream.archives(self._custom())

    async def describe(self, archive: str, may_load: bool = False) -> list[dict[str, Any]]:
        """As Upstream.describe, with `loaded` for each model: whether it is in memory. It does not count as a use.

        Args:
            may_load: whether an archive is loaded that has not been described so far, instead of a Failure.
        """
        with self._using(archive, counts=False):
            if self._unloads and (archive in self._unloading or await self._upstream.state(archive) == NO_WORKER):
                if archive in self._described:
                    return [{**model, "loaded": False} for model in self._described[archive]]
                if not may_load:
                    raise Failure(503, f"{archive} is not in memory.", START_RETRY_S)
                await self._load(archive)
            return [{**model, "loaded": True} for model in await self._upstream.describe(archive)]

    async def unload_idle(self) -> None:
        """Unloads archives that nobody uses, for ever."""
        while self._unloads:
            await asyncio.sleep(min(CHECK_S, self._unload_after_s / 4))
            try:
                archives = await self.archives()
            except Failure:  # config.json is faulty; who asks for a model is told
                continue
            for archive in archives:
                use = self._use(archive)
                if not use.open and time.monotonic() > use.last + self._unload_after_s:
                    self._unloading[archive] = asyncio.create_task(self._unload(archive))
                    await self._unloading[archive]
                    del self._unloading[archive]

    async def _load(self, archive: str) -> None:
        """Loading goes on if the client that caused it disconnects: the next client needs it too."""
        if unloading := self._unloading.get(archive):
            await asyncio.wait({unloading})
        task = self._loading.get(archive)
        if task is None:
            task = self._loading[archive] = asyncio.create_task(self._upstream.load(archive))
            task.add_done_callback(lambda done: self._loaded(archive, done))
        await asyncio.shield(task)

    def _loaded(self, archive: str, task: asyncio.Task[None]) -> None:
        del self._loading[archive]
        if not task.cancelled():
            task.exception()  # retrieved here in case every client has disconnected

    async def _unload(self, archive: str) -> None:
        """Unloads an archive, unless a request for it comes meanwhile."""
        try:
            if await self._upstream.state(archive) != READY:
                return
            self._described[archive] = await self._upstream.describe(archive)
            if not self._use(archive).open:
                await self._upstream.unload(archive)
                logger.info("%s is unloaded: nobody has used it for a while.", archive)
        except Exception:  # it is tried again
            logger.exception("%s could not be unloaded.", archive)

    def _use(self, archive: str) -> _Use:
        return self._uses.setdefault(archive, _Use(time.monotonic()))

    @contextmanager
    def _using(self, archive: str, counts: bool) -> Iterator[None]:
        use = self._use(archive)
        use.open += 1
        try:
            yield
        finally:
            use.open -= 1
            if counts:
                use.last = time.monotonic()
