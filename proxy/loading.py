"""Archives in memory: loaded with a request for them, and unloaded for others' sake, or when nobody uses them."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AsyncExitStack, ExitStack, aclosing, suppress
from functools import partial
from typing import Any

from handlers.catalogue import FAILED, PREPARING, Catalogue
from handlers.wire import COUNT, CUSTOM, Progress, RequestHead, Result
from proxy.admission import Queued
from proxy.errors import Failure
from proxy.frontend_failures import READY, NotLoaded, TorchServeDied, not_in_memory, not_prepared
from proxy.residents import Place, Residents
from proxy.restarts import Restarts
from proxy.upstream import NO_WORKER, Upstream

CHECK_S = 10  # how often idle archives are looked for, at most
PREPARING_S = 10  # how long a request waits for the archive of its model
FAILED_S = 30  # for which a model that could not be loaded is not tried again: each time, another may have to leave


class Loading:
    """Requests to archives that may not be in memory.

    Args:
        catalogue: what is known of the models beside the main one.
        most: archives that may be in memory; 0 = as many as fit, by the catalogue.
        unload_after_s: seconds without a request for an image after which an archive is unloaded; 0 = never.
    """

    def __init__(
        self,
        upstream: Upstream,
        catalogue: Catalogue,
        most: int = 0,
        unload_after_s: float = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream, self._catalogue, self._most, self._clock = upstream, catalogue, most, clock
        self._restarts = Restarts()
        self._unload_after_s = unload_after_s or math.inf
        self._residents = Residents(self._load, self._unload, self._fit, clock)
        self._described: dict[str, list[dict[str, Any]]] = {}  # as they were when they were unloaded
        self._failed: dict[str, tuple[float, str]] = {}  # until when each one is not tried again, and why

    @property
    def _unloads(self) -> bool:
        return self._unload_after_s < math.inf or bool(self._most or self._catalogue.contents().memory_bytes)

    async def generate(
        self, archive: str, head: RequestHead, body: bytes
    ) -> AsyncGenerator[Queued | Progress | Result, None]:
        """As Upstream.generate, with an archive that is loaded first if necessary, and again if its worker dies."""
        send = partial(self._send, archive, head, body)
        async with aclosing(self._restarts.generate(archive, send)) as events:
            async for event in events:
                yield event

    async def _send(
        self, archive: str, head: RequestHead, body: bytes
    ) -> AsyncGenerator[Queued | Progress | Result, None]:
        async with AsyncExitStack() as held:
            if self._is_watched(archive):
                place = await self._place(archive, held)
                if not place.done():
                    yield Queued(1, loads=archive.removeprefix(CUSTOM))
                await place
            events = await held.enter_async_context(aclosing(self._upstream.generate(archive, head, body)))
            async for event in events:
                yield event

    async def load(self, archive: str) -> None:
        """Returns when an archive is in memory. Raises as `generate`."""
        if self._is_watched(archive):
            with ExitStack() as held:
                await (await self._place(archive, held))

    def _is_watched(self, archive: str) -> bool:
        """Whether it may be out of memory."""
        return self._unloads or archive.startswith(CUSTOM)

    async def _place(self, archive: str, held: ExitStack | AsyncExitStack) -> Place:
        """A request's place, which `held` gives back. Raises Failure 503 for an archive that cannot be served."""
        await self._prepared(archive)
        since = self._clock()
        if archive.startswith(CUSTOM) and not await self._upstream.has(archive):
            # by a TorchServe that was started again; what else it has is known before anything is loaded
            await self._look()
            self._residents.lost(archive, since)
        else:
            await self._look(archive)
        return held.enter_context(self._residents.use(archive))

    async def states(self) -> dict[str, str]:
        """As Upstream.states; an archive that is unloaded is ready, since a request for it loads it."""
        states = await self._upstream.states()
        return {task: READY if self._unloads and state == NO_WORKER else state for task, state in states.items()}

    async def archives(self) -> list[str]:
        """The archives of the tasks, and those of other models that are loaded."""
        others = [archive for archive in await self._upstream.loaded() or () if archive.startswith(CUSTOM)]
        return [*self._upstream.archives(), *others]

    async def describe(self, archive: str, may_load: bool = False) -> list[dict[str, Any]]:
        """As Upstream.describe, with `loaded` for each model: whether it is in memory. It does not count as a use.

        Args:
            may_load: whether an archive is loaded that has not been described so far, instead of a Failure.
        """
        if not self._unloads:
            return await self._ask(archive)
        await self._look(archive)
        with self._residents.hold(archive) as is_in_memory:
            if is_in_memory:
                return await self._ask(archive)
        if archive in self._described:
            return [{**model, "loaded": False} for model in self._described[archive]]
        if not may_load:
            raise not_in_memory(archive)
        with self._residents.use(archive) as place:
            await place
            return await self._ask(archive)

    async def count(self, archive: str, form_type: str, body: bytes) -> bytes:
        """How many tokens the prompts of a request have, as JSON. Raises Failure 503 if it is not in memory."""
        await self._look(archive)
        with self._residents.hold(archive) as is_in_memory:
            if is_in_memory:
                return await self._upstream.ask(archive, RequestHead(COUNT, form_type), body)
        raise not_in_memory(archive)

    async def _ask(self, archive: str) -> list[dict[str, Any]]:
        return [{**model, "loaded": True} for model in await self._upstream.describe(archive)]

    async def unload_idle(self) -> None:
        """Unloads archives that nobody uses, for ever."""
        while self._unload_after_s < math.inf:
            await asyncio.sleep(min(CHECK_S, self._unload_after_s / 4))
            await self._look()
            self._residents.unload_idle(self._unload_after_s)

    async def _look(self, archive: str = "") -> None:
        """Finds out what is in memory, unless this archive is known to be: others load some, too."""
        if not (archive and self._residents.is_in(archive)):
            await self._take_note(self._clock())

    async def _take_note(self, since: float) -> None:
        """Records what is in memory, if TorchServe says so; `since`: when it was asked."""
        loaded = await self._upstream.loaded()
        if loaded is not None:
            self._residents.found(loaded, since)

    async def _prepared(self, archive: str) -> None:
        """Returns when an archive can be loaded. Raises Failure 503 for one that is not ready, or cannot be served."""
        until, reason = self._failed.get(archive, (0.0, ""))
        if self._clock() < until:
            raise NotLoaded(reason)
        for _ in range(PREPARING_S if archive.startswith(CUSTOM) else 0):
            entry = self._catalogue.find(archive)
            if entry and entry.state == FAILED:
                raise NotLoaded(entry.reason)
            if self._catalogue.is_there and (entry is None or entry.state == PREPARING):
                await asyncio.sleep(1)
            else:
                return
        if archive.startswith(CUSTOM):
            raise not_prepared()

    def _fit(self, archives: Collection[str]) -> bool:
        told = self._catalogue.contents()
        if self._most or not told.memory_bytes:
            return not self._most or len(archives) <= self._most
        weights = {model.archive: model.weight_bytes for model in told.models}
        needed = sum(weights.get(archive, told.main_weight_bytes) + told.beside_bytes for archive in archives)
        return needed <= told.memory_bytes

    async def _load(self, archive: str) -> None:
        self._catalogue.forget_failure(archive)
        try:
            await self._upstream.load(archive)
        except TorchServeDied:  # the next one has models of its own: they are known before anything else is loaded
            await self._upstream.has(archive)
            await self._look()
            raise
        except NotLoaded:
            reason = self._catalogue.failure(archive)
            self._failed[archive] = self._clock() + FAILED_S, reason
            raise NotLoaded(reason) from None

    async def _unload(self, archive: str) -> None:
        with suppress(Failure):
            self._described[archive] = await self._upstream.describe(archive)
        since = self._clock()
        if not await self._upstream.unload(archive):  # by a TorchServe that was started again, which has others
            await self._take_note(since)
