"""Whose turn it is, with clients that wait as they would for an archive."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from handlers.wire import Progress, Result
from proxy import admission
from proxy.admission import Admission, Queue, Queued
from proxy.errors import Failure
from proxy.frontend_failures import BUSY_RETRY_S
from proxy.telemetry import Counts

pytestmark = pytest.mark.anyio
HANGS_S = 30


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clients:
    """Requests that stay open until they are ended, and the order in which their turns came."""

    def __init__(self, tasks: anyio.abc.TaskGroup, **limits: int) -> None:
        self.counts = Counts()
        limits = {"max_open": 4, "max_waiting": 5, "max_per_client": 5} | limits
        self.max_open = limits["max_open"]
        self.queue = Queue(**limits, counts=self.counts)
        self.order: list[str] = []
        self.places: dict[Any, list[int]] = {}  # that each request was told, the requests in the order they came
        self._tasks = tasks
        self._ends: dict[str, list[anyio.Event]] = {}

    async def ask(self, client: str, count: int = 1) -> None:
        for _ in range(count):
            self._tasks.start_soon(self._request, client)
            await anyio.wait_all_tasks_blocked()

    async def end(self, client: str) -> None:
        self._ends[client].pop(0).set()
        await anyio.wait_all_tasks_blocked()

    async def _request(self, client: str) -> None:
        async with self.queue.turn(client) as turn:
            self.places[turn] = []
            async for place in self.queue.places(turn):
                self.places[turn].append(place)
            self.order.append(client)
            end = anyio.Event()
            self._ends.setdefault(client, []).append(end)
            await end.wait()


@asynccontextmanager
async def clients(**limits: int) -> AsyncIterator[Clients]:
    async with anyio.create_task_group() as tasks:
        there = Clients(tasks, **limits)
        yield there
        tasks.cancel_scope.cancel()
    async with AsyncExitStack() as turns:
        with anyio.fail_after(HANGS_S):  # as many have their turns at once as at the start
            for client in range(there.max_open):
                turn = await turns.enter_async_context(there.queue.turn(f"later {client}"))
                assert [place async for place in there.queue.places(turn)] == []
    assert there.counts.registry.get_sample_value("sd_requests_waiting") == 0


async def test_one_client_leaves_room_for_others() -> None:
    async with clients() as there:
        await there.ask("a", 5)
        await there.ask("b")
        assert there.order == ["a", "a", "b"]
        await there.end("a")
        assert there.order == ["a", "a", "b", "a"]


async def test_clients_have_their_turns_one_after_the_other() -> None:
    async with clients(max_open=2, max_waiting=10) as there:
        await there.ask("a", 4)
        await there.ask("b", 3)
        await there.ask("c")
        assert there.order == ["a", "b"]
        for client in ("a", "b", "a", "c", "b"):
            await there.end(client)
        assert there.order == ["a", "b", "a", "b", "c", "a", "b"]


async def test_a_waiting_request_is_told_its_place_and_each_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PLACE_S", 0.01)
    async with clients(max_open=2, max_waiting=10, max_per_client=10) as there:

        async def told(*last: int) -> None:
            with anyio.fail_after(HANGS_S):
                while [places[-1] for places in there.places.values() if places] != list(last):
                    await anyio.sleep(0.01)

        for client in "aaabbc":
            await there.ask(client)
        assert there.order == ["a", "b"]
        await told(1, 4, 2, 3)  # the second and the third of a, the second of b, and c
        await there.end("a")
        await told(1, 3, 1, 2)
        assert there.order == ["a", "b", "a"]


async def test_there_are_limits_for_one_client_and_for_all() -> None:
    async with clients() as there:
        await there.ask("a", 5)
        with pytest.raises(Failure, match="You have 5 open requests") as refused:
            async with there.queue.turn("a"):
                pass
        assert (refused.value.status, refused.value.retry_after) == (429, BUSY_RETRY_S)
        await there.ask("b", 4)
        assert there.order == ["a", "a", "b", "b"]
        with pytest.raises(Failure, match="too many requests are waiting") as refused:
            async with there.queue.turn("c"):
                pass
        assert refused.value.status == 503
        await there.end("b")
        await there.ask("c")
        assert len(there.order) == 5


async def test_a_client_that_leaves_while_it_waits_gives_its_place_up() -> None:
    async with clients(max_open=2) as there:
        await there.ask("a")
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(there._request, "a")
            await anyio.wait_all_tasks_blocked()
            leaving.cancel_scope.cancel()
        await there.ask("a")
        await there.end("a")
        assert there.order == ["a", "a"]


async def test_a_client_that_leaves_as_its_turn_comes_passes_the_turn_on() -> None:
    async with clients(max_open=2) as there:
        await there.ask("a")
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(there._request, "a")
            await anyio.wait_all_tasks_blocked()
            await there.ask("a")
            there._ends["a"].pop(0).set()
            leaving.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert there.order == ["a", "a"]


async def test_retry_after_says_when_there_will_be_room(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: now))
    async with clients(max_open=2, max_waiting=0, max_per_client=1) as there:
        await there.ask("a")
        now = 10.0
        await there.end("a")  # it took 10 seconds, as the next ones will
        await there.ask("a")
        now = 14.0
        await there.ask("b")
        now = 16.0
        assert [retry_after(there, "c") for _ in range(4)] == [4, 8, 14, 18]
        assert retry_after(there, "b") == 8  # of its own
        now = 21.0  # a should have ended: it will any moment; and one of those that were promised room is not back
        assert retry_after(there, "c") == 13


def retry_after(there: Clients, client: str) -> int | None:
    """The seconds after which a client that is refused now may come back."""
    with pytest.raises(Failure) as refused:
        there.queue.check(client)
    return refused.value.retry_after


async def test_when_a_request_at_a_place_will_be_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: clock.now))
    queue = Queue(4, 5, 5, Counts())
    assert queue.expected_s(0) is None
    async with queue.turn("a"):
        clock.now = 8.0
    assert [queue.expected_s(place) for place in (0, 1, 4)] == [8.0, 10.0, 16.0]


@pytest.mark.parametrize(("restarts", "expected"), [(False, 14.4), (True, 8.0)])
async def test_a_request_that_waited_for_a_restart_tells_nothing_of_others(
    monkeypatch: pytest.MonkeyPatch, restarts: bool, expected: float
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: clock.now))
    admitted = Admission(4, 5, 5, Counts())

    async def taking(seconds: float) -> AsyncGenerator[Queued | Progress | Result, None]:
        yield Queued(1, restarts=restarts and seconds > 8)
        clock.now += seconds
        yield Result(b"{}")

    for seconds in (8.0, 40.0):
        async for _ in admitted.generate("txt2img", "a", taking(seconds)):
            pass
    assert admitted.expected_s("txt2img", 0) == expected
