"""TorchServe as the proxy sees it: whether an archive is ready, what it serves, and generating images with it."""

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import httpx

from handlers.wire import DESCRIBE, WITHOUT_MODEL, Progress, RequestHead, Result
from proxy.answers import lines, message
from proxy.errors import Failure
from proxy.frontend_failures import (
    READY,
    START_RETRY_S,
    NotLoaded,
    TorchServeDied,
    WaitedInVain,
    WorkerDied,
    cannot_serve,
    failure_of,
    not_prepared,
    unreachable,
)

logger = logging.getLogger(__name__)

WATCH_S = 1  # how often a request without an answer checks that there is a worker
PATIENCE_S = 10  # how long a question waits for one: a worker that died is usually back by then
CONNECT_S = 0.2  # how often a request looks for a TorchServe that is being started again
PAGE = "100"  # archives, TorchServe's maximum
NO_WORKER = "no worker: scale it up with the management API"  # a state, as READY is one


class Upstream:
    """The archives' readiness and predictions.

    Args:
        archive_of_task: the archive's name for each task.
        restart_s: how long a request for images waits for a worker, or for TorchServe, that is being restarted.
    """

    def __init__(
        self,
        inference_url: str,
        management_url: str,
        metrics_url: str,
        archive_of_task: Mapping[str, str],
        transport: httpx.AsyncBaseTransport | None = None,
        restart_s: float = PATIENCE_S,
    ) -> None:
        self._inference_url = inference_url.rstrip("/")
        self._management_url = management_url.rstrip("/")
        self._metrics_url = metrics_url.rstrip("/")
        self._archive_of_task = archive_of_task
        self._restart_s = restart_s
        # an image may take minutes, so reads have no time limit of their own: the deadline and the client bound them
        timeout = httpx.Timeout(10.0, read=None, write=60.0, pool=None)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
        self._client = httpx.AsyncClient(timeout=timeout, limits=limits, transport=transport, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def states(self) -> dict[str, str]:
        """Each task's state: READY, or why it cannot serve."""
        archives = sorted(set(self._archive_of_task.values()))
        states = dict(zip(archives, await asyncio.gather(*map(self.state, archives)), strict=True))
        return {task: states[archive] for task, archive in self._archive_of_task.items()}

    async def state(self, archive: str) -> str:
        """An archive's state: READY, or why it cannot serve."""
        try:
            answer = await self._client.get(f"{self._management_url}/models/{archive}", timeout=5.0)
            if answer.status_code == 404:
                return f"the archive {archive} is not registered"
            workers = answer.raise_for_status().json()[0]["workers"]
        except httpx.TransportError:
            return "TorchServe is starting"
        except (httpx.HTTPStatusError, ValueError, LookupError):
            return "TorchServe gives an unexpected answer"
        if not workers:
            return NO_WORKER
        return READY if all(worker["status"] == "READY" for worker in workers) else "the model is loading"

    async def loaded(self) -> list[str] | None:
        """The archives that are in memory: those that have a worker. None if TorchServe does not say."""
        names: list[str] = []
        query: dict[str, str] | None = {"limit": PAGE}
        try:
            while query:
                answer = await self._client.get(f"{self._management_url}/models", params=query, timeout=5.0)
                listed = answer.raise_for_status().json()
                names += [model["modelName"] for model in listed["models"]]
                after = listed.get("nextPageToken")
                query = {"limit": PAGE, "next_page_token": after} if after else None
        except httpx.ConnectError:  # it has died, and what it had with it
            return []
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
            return None
        described = await asyncio.gather(*map(self.state, names))
        return [name for name, state in zip(names, described, strict=True) if state != NO_WORKER]

    def archives(self) -> list[str]:
        """The archives of the tasks, each once."""
        return [*dict.fromkeys(self._archive_of_task.values())]

    async def describe(self, archive: str) -> list[dict[str, Any]]:
        """What an archive serves, model by model. Raises Failure if it does not answer."""
        described = json.loads(await self.ask(archive, RequestHead(DESCRIBE)))
        return [{"archive": archive, **model} for model in described["models"]]

    async def ask(self, archive: str, head: RequestHead, body: bytes = b"") -> bytes:
        """The answer, as JSON, to a question that takes no steps. Raises Failure."""
        async with aclosing(self._generate(archive, head, body, min(PATIENCE_S, self._restart_s))) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event.body
        raise Failure(503, f"{archive} did not answer: try again shortly.", START_RETRY_S)

    async def metrics(self) -> bytes:
        """TorchServe's own figures in Prometheus' format; empty if it does not answer."""
        try:
            answer = await self._client.get(f"{self._metrics_url}/metrics", timeout=5.0)
        except httpx.TransportError:
            return b""
        return answer.content if answer.is_success else b""

    def archive_of(self, task: str) -> str:
        """The archive that does a task with the main model; that of img2img does what needs no model."""
        return self._archive_of_task["img2img" if task in WITHOUT_MODEL else task]

    async def has(self, archive: str) -> bool:
        """Whether an archive has a worker, as soon as TorchServe answers. Raises Failure if it does not in time."""
        return bool(await self._workers(archive))

    async def load(self, archive: str) -> None:
        """Registers an archive of the model store, or starts its worker, unless there is one.

        Returns when it can serve. Raises Failure if it cannot, NotLoaded where its worker does not start.
        """
        url = f"{self._management_url}/models"
        query = {"url": f"{archive}.mar", "model_name": archive, "initial_workers": "1", "synchronous": "true"}
        workers = await self._workers(archive)
        if workers:
            return
        try:
            if workers is not None:
                try:
                    if not await self._scale(archive, 1):
                        raise TorchServeDied
                except NotLoaded:
                    await self._scale(archive, 0)  # TorchServe would start it again and again, beside others
                    raise
                return
            answer = await self._client.post(url, params=query)
            if answer.status_code == 404:
                raise not_prepared()
            if answer.is_error and answer.status_code != 409:  # 409: another request has just registered it
                # an archive that stays registered without a worker would never be loaded again
                await self._client.delete(f"{url}/{archive}")
                raise NotLoaded
        except httpx.TransportError:
            raise TorchServeDied from None

    async def unload(self, archive: str) -> bool:
        """Ends an archive's worker, with all its memory. A request that runs there would hang. Raises Failure.

        Returns whether TorchServe knew it: one that was started again does not.
        """
        try:
            return await self._scale(archive, 0)
        except httpx.TransportError:
            raise TorchServeDied from None

    async def _workers(self, archive: str) -> list[Any] | None:
        """An archive's workers, as soon as TorchServe answers; None if it is not registered. Raises as `has`."""
        ask = partial(self._client.get, f"{self._management_url}/models/{archive}", timeout=5.0)
        try:
            answer = await _connect(ask, self._restart_s, httpx.TransportError)
        except httpx.TransportError:
            raise unreachable() from None
        if answer.status_code == 404:
            return None
        if answer.is_error:
            raise unreachable()
        workers: list[Any] = answer.json()[0]["workers"]
        return workers

    async def _scale(self, archive: str, workers: int) -> bool:
        """Returns whether TorchServe knows the archive."""
        query = {"min_worker": str(workers), "max_worker": str(workers), "synchronous": "true"}
        answer = await self._client.put(f"{self._management_url}/models/{archive}", params=query)
        if answer.is_error and answer.status_code != 404:
            logger.warning("TorchServe does not scale %s to %d: %s", archive, workers, answer.text[:300])
            raise NotLoaded
        return answer.status_code != 404

    async def generate(self, archive: str, head: RequestHead, body: bytes) -> AsyncGenerator[Progress | Result, None]:
        """Runs one request on an archive: yields a Progress a step, then the Result.

        Closing the iterator closes the connection, so the handler drops the request at its next call. Raises Failure
        for everything that goes wrong, WorkerDied where the request may be sent again.
        """
        async with aclosing(self._generate(archive, head, body, self._restart_s)) as events:
            async for event in events:
                yield event

    async def _generate(
        self, archive: str, head: RequestHead, body: bytes, patience_s: float
    ) -> AsyncGenerator[Progress | Result, None]:
        url = f"{self._inference_url}/predictions/{archive}"
        headers = [(name.encode(), value) for name, value in head.headers().items()]
        result = None
        try:
            request = self._client.build_request("POST", url, content=body, headers=headers)
            async with aclosing(await self._send(archive, request, patience_s)) as answer:
                if answer.status_code != 200:
                    body = await answer.aread()
                    logger.warning("TorchServe answered %s with status %d: %s", archive, answer.status_code, body[:300])
                    raise failure_of(answer.status_code, body, archive, await self.state(archive))
                async for line in lines(answer):
                    event = message(line)
                    if isinstance(event, Progress):
                        yield event
                    else:  # the answer is read to its end, so that the connection can be used again
                        result = event or result
        except httpx.WriteTimeout:  # no worker has the request
            raise unreachable() from None
        except httpx.TransportError as error:
            logger.warning("TorchServe ended a request early: %s", type(error).__name__)
            if result is None and not await self._answers():
                raise TorchServeDied from None
        if result is None:
            raise WorkerDied
        yield result

    async def _answers(self) -> bool:
        """Whether TorchServe does."""
        try:
            await self._client.get(f"{self._management_url}/models", timeout=5.0)
        except httpx.TransportError:
            return False
        return True

    async def _send(self, archive: str, request: httpx.Request, patience_s: float) -> httpx.Response:
        """The head of TorchServe's answer, which comes when a worker has the request.

        Raises Failure 503 if no worker comes in time: TorchServe would let the request wait for ever.
        """
        sending = asyncio.create_task(_connect(partial(self._client.send, request, stream=True)))
        try:
            ready = time.monotonic()
            while not (await asyncio.wait({sending}, timeout=WATCH_S))[0]:
                state = await self.state(archive)
                if state == READY:
                    ready = time.monotonic()
                elif time.monotonic() > ready + patience_s and not sending.done():
                    raise WaitedInVain(cannot_serve(archive, state))
        except BaseException:
            sending.cancel()
            sending.add_done_callback(_close)
            raise
        return sending.result()


async def _connect(
    send: Callable[[], Awaitable[httpx.Response]],
    patience_s: float = math.inf,
    errors: type[Exception] | tuple[type[Exception], ...] = (httpx.ConnectError, httpx.ConnectTimeout),
) -> httpx.Response:
    """What `send` returns, as soon as TorchServe listens: one that has died is started again.

    Args:
        errors: after which it is tried again, for `patience_s`.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            return await send()
        except errors:
            if time.monotonic() >= end:
                raise
            await asyncio.sleep(CONNECT_S)


def _close(sending: asyncio.Task[httpx.Response]) -> None:
    """Closes the connection of an abandoned request, even if its answer came at that moment."""
    if not sending.cancelled() and sending.exception() is None:
        asyncio.get_running_loop().create_task(sending.result().aclose())
