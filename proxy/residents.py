"""Which models are in memory: within a bound, and in turns where requests need more of them."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

TURN_S = 60  # for which a model goes on to take new requests while another one waits for its room
REST_S = 1  # without a request, after which it leaves before that: a client may send one after the other

OUT, LOADING, IN, LEAVING = "out", "loading", "in", "leaving"
Place = asyncio.Future[None]  # of a request: done when its model is in memory, or could not be loaded


@dataclass(eq=False)
class _Resident:
    """A model in memory, or wanted there. Times are the clock's.

    Attributes:
        came: when it was loaded.
        left: when it was last known to be out of memory.
        used: when the last request ended.
        open: how many requests use it.
        waiting: those that wait until it is there, and since when.
    """

    name: str
    state: str = OUT
    came: float = 0.0
    left: float = -math.inf
    used: float = 0.0
    open: int = 0
    waiting: deque[tuple[float, Place]] = field(default_factory=deque)

    @property
    def is_idle(self) -> bool:
        return self.state == IN and not self.open and not self.waiting

    def leave(self, at: float) -> None:
        self.state, self.left = OUT, at

    @property
    def waits_since(self) -> float:
        return self.waiting[0][0]


class Residents:
    """Loads models for the requests that need them, and unloads others where there is no room.

    The model that was used longest ago leaves first. If all are in use, the first whose turn is over takes no new
    requests, and leaves when its open ones have ended: none is cancelled. So two models that need the same room take
    turns, of TURN_S if they have as much to do.

    Args:
        load, unload: end when it is done. A failure of `load` goes to the requests that wait for the model.
        fit: whether models of these names may be in memory together.
    """

    def __init__(
        self,
        load: Callable[[str], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
        fit: Callable[[Collection[str]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._unload, self._fit, self._clock = load, unload, fit, clock
        self._all: dict[str, _Resident] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def use(self, name: str) -> Iterator[Place]:
        """A request's place. Once it is done, the model stays in memory as long as the context lasts."""
        one, place = self._get(name), asyncio.get_running_loop().create_future()
        waiter = (self._clock(), place)
        one.waiting.append(waiter)
        self._go_on()
        try:
            yield place
        finally:
            if waiter in one.waiting:
                one.waiting.remove(waiter)
            elif not place.cancelled() and place.exception() is None:  # it was admitted
                one.open -= 1
                one.used = self._clock()
            self._go_on()

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Whether a model is in memory; if so, it stays there as long as the context lasts, which is no use of it."""
        one = self._get(name)
        is_there = one.state == IN
        one.open += is_there
        try:
            yield is_there
        finally:
            one.open -= is_there
            self._go_on()

    def is_in(self, name: str) -> bool:
        return self._get(name).state == IN

    def found(self, names: Collection[str], since: float) -> None:
        """Takes note of the models that were in memory at a time, whoever has loaded them."""
        for name in names:
            one = self._get(name)
            if one.state == OUT and one.left <= since:  # it may have left while this was found out
                one.state, one.came, one.used = IN, since, since
        for one in self._all.values():
            if one.is_idle and one.came < since and one.name not in names:
                one.leave(since)

    def lost(self, name: str, since: float) -> None:
        """Takes note of a model that was not in memory at a time. Requests that it had end by themselves."""
        one = self._get(name)
        if one.state == IN and one.came < since:
            one.leave(since)

    def unload_idle(self, after_s: float) -> None:
        """Has the models leave that no request has used for so many seconds."""
        for one in self._all.values():
            if one.is_idle and self._clock() > one.used + after_s:
                self._start(one, LEAVING)

    def _get(self, name: str) -> _Resident:
        return self._all.setdefault(name, _Resident(name))

    def _go_on(self) -> None:
        """Admits requests, and begins what they wait for."""
        wanted = min((one for one in self._all.values() if one.state == OUT and one.waiting),
                     key=lambda one: one.waits_since, default=None)  # fmt: skip
        there = [one for one in self._all.values() if one.state != OUT]
        leaving = None
        if wanted and (not there or self._fit([one.name for one in (*there, wanted)])):
            self._start(wanted, LOADING)
            self._go_on()  # there may be room for another one
            return
        if wanted and not any(one.state == LEAVING for one in there):
            leaving = self._next_to_leave(wanted)
        for one in there:
            if one.state == IN and one is not leaving:
                self._admit(one)
        if leaving and not leaving.open:
            self._start(leaving, LEAVING)

    def _next_to_leave(self, wanted: _Resident) -> _Resident | None:
        """The model that makes room: one that is idle, otherwise one whose turn is over; None if there is none yet."""
        now, there = self._clock(), [one for one in self._all.values() if one.state == IN]
        idle = min((one for one in there if one.is_idle), key=lambda one: one.used, default=None)
        if idle and now >= idle.used + REST_S:
            return idle
        over = [one for one in there if now >= max(one.came, wanted.waits_since) + TURN_S]
        if idle and not over:
            self._look_again(idle.used + REST_S - now)
        return min(over, key=lambda one: one.came, default=None)

    def _look_again(self, after_s: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(after_s, self._go_on)

    def _admit(self, one: _Resident) -> None:
        while one.waiting:
            _, place = one.waiting.popleft()
            if not place.done():  # its client has not just disconnected
                one.open += 1
                place.set_result(None)

    def _start(self, one: _Resident, state: str) -> None:
        """Has a model come or leave, in a task of its own: it goes on if the client that caused it disconnects."""
        one.state = state
        task = asyncio.create_task(self._come(one) if state == LOADING else self._leave(one))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _come(self, one: _Resident) -> None:
        try:
            await self._load(one.name)
        except Exception as error:
            one.leave(self._clock())
            self._fail(one, error)
        else:
            one.state, one.came, one.used = IN, self._clock(), self._clock()
        self._go_on()

    async def _leave(self, one: _Resident) -> None:
        try:
            await self._unload(one.name)
        except Exception as error:
            one.state = IN
            logger.warning("%s could not be unloaded: %s", one.name, error)
            for other in self._all.values():
                if other.state == OUT:
                    self._fail(other, error)
        else:
            one.leave(self._clock())
        self._go_on()

    @staticmethod
    def _fail(one: _Resident, error: Exception) -> None:
        while one.waiting:
            _, place = one.waiting.popleft()
            if not place.done():
                place.set_exception(error)
                place.exception()  # retrieved here in case its client disconnects
