"""Requests whose worker or TorchServe has died are sent again: the proxy still has all that they need."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.frontend_failures import TorchServeDied, WaitedInVain, WorkerDied, died_twice, unreachable

logger = logging.getLogger(__name__)

SETTLE_S = 0.5  # after a death; TorchServe's other connections, which break one by one, are then known to be broken

TORCHSERVES_DEATHS = 2  # that a request outlives; it may be its model's load that ends TorchServe

Send = Callable[[], AsyncGenerator[Queued | Progress | Result, None]]


class Restarts:
    """Sends requests to archives. Of those that a dead worker had, one at a time is sent again.

    A request that kills its worker does so again. It is then the only one that was there at both deaths, and fails
    alone: the others are sent again after it. Those of a TorchServe that died are sent again at once.
    """

    def __init__(self) -> None:
        self._again: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # when one of those has waited in vain, and why; not the failure itself, which holds all that it passed
        self._given_up: dict[str, tuple[float, str]] = {}

    async def generate(self, archive: str, send: Send) -> AsyncGenerator[Queued | Progress | Result, None]:
        """What `send` yields; Queued before it is called again.

        Raises as it does, 500 after a worker's second death, and 503 after too many of TorchServe's.
        """
        left = TORCHSERVES_DEATHS
        while True:
            try:
                async with aclosing(send()) as events:
                    async for event in events:
                        yield event
                return
            except TorchServeDied:
                left = _one_less(left)
                logger.warning("TorchServe died: a request for %s is sent again.", archive)
            except WorkerDied:
                logger.warning("A worker of %s died: a request that it had is sent again.", archive)
                break
            yield Queued(1, restarts=True)
        yield Queued(1, restarts=True)
        died = time.monotonic()
        await asyncio.sleep(SETTLE_S)
        async with self._again[archive]:
            if archive in self._given_up and self._given_up[archive][0] > died:
                raise WaitedInVain(self._given_up[archive][1])  # the one before has waited for both
            result = None
            while result is None:
                try:
                    async with aclosing(send()) as events:
                        async for event in events:
                            if isinstance(event, Result):
                                result = event
                            else:
                                yield event
                except TorchServeDied:
                    left = _one_less(left)
                    yield Queued(1, restarts=True)
                except WorkerDied:
                    raise died_twice() from None
                except WaitedInVain as failure:
                    self._given_up[archive] = time.monotonic(), failure.message
                    raise
        yield result  # others need not wait until this client has read it


def _one_less(left: int) -> int:
    """The deaths of TorchServe that a request still outlives after one more. Raises Failure 503 for one too many."""
    if not left:
        raise unreachable() from None
    return left - 1
