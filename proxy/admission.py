"""Admission: how many requests an archive gets at a time, clients in turns, and the answer when it is full."""

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import anyio

from handlers.wire import Progress, Result
from proxy.errors import Failure
from proxy.frontend_failures import BUSY_RETRY_S, busy
from proxy.telemetry import Counts

LEARNING = 0.2  # the weight of the last request's seconds in the usual ones
PLACE_S = 1  # how often a waiting request is told its place, at most


@dataclass(frozen=True)
class Queued:
    """A request waits for its turn; 1 is the next place.

    Attributes:
        loads: the name of its model, if that is loaded first.
        restarts: whether it had begun, and its worker is being restarted.
    """

    place: int
    loads: str = ""
    restarts: bool = False

    def fields(self) -> dict[str, int | str]:
        shown: dict[str, int | str] = {"place": self.place}
        return shown | {"loads": self.loads} if self.loads else shown


class Admission:
    """A `Queue` for each archive.

    Args:
        max_open: requests that an archive runs at a time; more would queue in TorchServe, first come, first served.
        max_waiting: requests that queue for that, from all clients together.
        max_per_client: requests from one client, running or queued.
        counts: told how many requests wait, and how long.
    """

    def __init__(self, max_open: int, max_waiting: int, max_per_client: int, counts: Counts) -> None:
        self._make_queue: Callable[[], Queue] = lambda: Queue(max_open, max_waiting, max_per_client, counts)
        self._queues: dict[str, Queue] = {}

    def check(self, archive: str, client: str) -> None:
        """Raises as `Queue.turn`, before any work is done for a request."""
        self._queue(archive).check(client)

    def expected_s(self, archive: str, place: int) -> float | None:
        """Seconds until a request at this place is finished, by the duration of recent ones; None if there are none."""
        return self._queue(archive).expected_s(place)

    def _queue(self, archive: str) -> "Queue":
        return self._queues.setdefault(archive, self._make_queue())

    async def generate(
        self, archive: str, client: str, events: AsyncGenerator[Queued | Progress | Result, None]
    ) -> AsyncGenerator[Queued | Progress | Result, None]:
        """`events` of a request to this archive, which begin when it is the client's turn. Raises as `Queue.turn`.

        The request's places in the queue come before. The turn ends with the result, however long the client takes to
        read it.
        """
        queue = self._queue(archive)
        async with aclosing(events):
            async with queue.turn(client) as turn:
                async with aclosing(queue.places(turn)) as places:
                    async for place in places:
                        yield Queued(place)
                async for event in events:
                    if isinstance(event, Result):
                        break
                    if isinstance(event, Queued) and event.restarts:
                        turn.is_usual = False
                    yield event
            yield event


@dataclass(eq=False)
class _Turn:
    """A request's place in the queue.

    Attributes:
        began: when it was admitted, on the monotonic clock.
        is_usual: whether its seconds tell those of others: it was not sent again.
    """

    client: str
    came: anyio.Event = field(default_factory=anyio.Event)
    began: float = 0.0
    is_usual: bool = True


class Queue:
    """An archive's requests. One client has at most half of the open ones, so another one finds room at once."""

    def __init__(self, max_open: int, max_waiting: int, max_per_client: int, counts: Counts) -> None:
        self._max_open, self._share = max_open, math.ceil(max_open / 2)
        self._max_waiting, self._max_per_client = max_waiting, max_per_client
        self._counts = counts
        self._open: set[_Turn] = set()
        self._waiting: dict[str, deque[_Turn]] = {}  # by client; the first client is admitted next
        self._usual_s: float | None = None  # from admission to the end
        self._promised: list[tuple[str, float]] = []  # client ("" for all) and the time it was told to come back at

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[_Turn]:
        """A place in the queue, and then a turn, as long as the context lasts; `places` waits for the turn.

        Raises Failure 429 for a client with too many requests, 503 when too many requests wait.
        """
        self.check(client)
        turn = _Turn(client)
        self._waiting.setdefault(client, deque()).append(turn)
        self._admit()
        try:
            yield turn
            if turn.is_usual:
                self._learn(time.monotonic() - turn.began)
        finally:
            if turn in self._open:
                self._open.remove(turn)
            else:
                self._waiting[client].remove(turn)
                if not self._waiting[client]:
                    del self._waiting[client]
            self._admit()

    async def places(self, turn: _Turn) -> AsyncGenerator[int, None]:
        """Waits until the turn comes. Yields its place at once, and each new one, at most every PLACE_S seconds."""
        asked, told = time.monotonic(), 0
        with self._counts.waiting.track_inprogress():
            while not turn.came.is_set():
                place = self._place(turn)
                if place != told:
                    yield place
                told = place
                with anyio.move_on_after(PLACE_S):
                    await turn.came.wait()
        self._counts.waited_seconds.inc(time.monotonic() - asked)

    def check(self, client: str) -> None:
        """Raises as `turn`."""
        own = len(self._open_of(client)) + len(self._waiting.get(client, ()))
        if own >= self._max_per_client:
            again = self._room_in(client, self._open_of(client))
            raise Failure(429, f"You have {own} open requests, the limit per client: wait for one to finish.", again)
        at_once = len(self._open) < self._max_open and len(self._open_of(client)) < self._share
        if not at_once and sum(map(len, self._waiting.values())) >= self._max_waiting:
            again = self._room_in("", self._open)
            raise busy(again)

    def expected_s(self, place: int) -> float | None:
        """As `Admission.expected_s`: with all places taken, one becomes free every usual_s / max_open seconds."""
        return None if self._usual_s is None else self._usual_s * (1 + place / self._max_open)

    def _place(self, turn: _Turn) -> int:
        """1 + the requests that are admitted before, round-robin by client, if no client's share holds it up."""
        rounds = self._waiting[turn.client].index(turn)
        place, is_before = 1 + rounds, True
        for client, waiting in self._waiting.items():
            if client == turn.client:
                is_before = False
            else:
                place += min(len(waiting), rounds + is_before)
        return place

    def _open_of(self, client: str) -> set[_Turn]:
        return {turn for turn in self._open if turn.client == client}

    def _admit(self) -> None:
        """Admits requests as long as there is room, one client after the other."""
        while len(self._open) < self._max_open:
            client = next((one for one in self._waiting if len(self._open_of(one)) < self._share), None)
            if client is None:
                return
            own = self._waiting.pop(client)
            turn = own.popleft()
            if own:
                self._waiting[client] = own  # behind all other clients
            turn.began = time.monotonic()
            self._open.add(turn)
            turn.came.set()

    def _learn(self, seconds: float) -> None:
        self._usual_s = seconds if self._usual_s is None else self._usual_s + LEARNING * (seconds - self._usual_s)

    def _room_in(self, whom: str, turns: Collection[_Turn]) -> int:
        """Whole seconds until there is room: the next end of one of `turns` that was not promised to another client."""
        if self._usual_s is None or not turns:
            return BUSY_RETRY_S
        now, usual = time.monotonic(), self._usual_s
        ends = sorted(max(0.0, turn.began + usual - now) for turn in turns)
        self._promised = [promise for promise in self._promised if promise[1] > now]
        rounds, place = divmod(sum(promise[0] == whom for promise in self._promised), len(ends))
        seconds = max(1, math.ceil(ends[place] + rounds * usual))
        self._promised.append((whom, now + seconds))
        return seconds
