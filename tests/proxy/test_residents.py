"""Which models are in memory: turns, and none is cancelled. Loading is played."""

import asyncio
from collections import Counter
from collections.abc import Collection
from contextlib import ExitStack

import pytest

from proxy.residents import TURN_S, Place, Residents
from tests.support.clock import Clock

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.residents.REST_S", 0)


class Played:
    """Models that are loaded and unloaded at once; `told` has what happened."""

    def __init__(self, most: int = 1) -> None:
        self.clock, self.told, self.memory, self.most = Clock(), list[str](), set[str](), most
        self.residents = Residents(self.load, self.unload, self.fit, self.clock)
        self.uses: dict[Place, ExitStack] = {}
        self.open: Counter[str] = Counter()
        self.broken: set[str] = set()

    def fit(self, names: Collection[str]) -> bool:
        return len(names) <= self.most

    async def load(self, name: str) -> None:
        self.told.append(f"+{name}")
        assert len(self.memory) < self.most
        await asyncio.sleep(0)
        if name in self.broken:
            raise ValueError(f"{name} is broken")
        self.memory.add(name)

    async def unload(self, name: str) -> None:
        self.told.append(f"-{name}")
        assert not self.open[name], "a request would hang"
        await asyncio.sleep(0)
        self.memory.remove(name)

    async def begin(self, name: str) -> Place:
        stack = ExitStack()
        place = stack.enter_context(self.residents.use(name))
        self.uses[place] = stack

        def count() -> None:
            self.open[name] -= 1

        def came(_: Place) -> None:
            if not place.cancelled() and place.exception() is None:
                assert name in self.memory
                self.open[name] += 1
                stack.callback(count)

        place.add_done_callback(came)
        await settled()
        return place

    async def end(self, place: Place) -> None:
        self.uses.pop(place).close()
        await settled()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_one_used_longest_ago_makes_room() -> None:
    played = Played(2)
    for name in "abac":
        await played.end(await played.begin(name))
        played.clock.now += 1
    assert played.told == ["+a", "+b", "-b", "+c"] and played.memory == {"a", "c"}


async def test_open_requests_are_finished_before_their_model_leaves() -> None:
    played = Played()
    first = await played.begin("a")
    other = await played.begin("b")
    assert first.done() and not other.done() and played.memory == {"a"}
    played.clock.now += TURN_S
    later = await played.begin("a")  # after the end of the turn
    assert not later.done()
    await played.end(first)
    assert other.done() and not later.done() and played.memory == {"b"}
    await played.end(other)
    assert later.done() and played.told == ["+a", "-a", "+b", "-b", "+a"]


async def test_a_turn_takes_what_comes_within_it() -> None:
    played = Played()
    places = [await played.begin("a")]
    waiting = [await played.begin("b"), await played.begin("b")]
    for _ in range(3):
        places.append(await played.begin("a"))
        played.clock.now += TURN_S / 4
    assert all(place.done() for place in places) and played.told == ["+a"]
    for place in places:
        await played.end(place)
    assert all(place.done() for place in waiting)
    # the turn of b begins when it is loaded, however long a waits
    back = await played.begin("a")
    played.clock.now += TURN_S / 2
    waiting.append(await played.begin("b"))
    assert waiting[-1].done() and not back.done()


async def test_two_models_take_turns_and_neither_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.residents.REST_S", 2)
    played = Played()
    open_places: dict[Place, tuple[str, float]] = {}
    waited: Counter[str] = Counter()
    for second in range(20 * TURN_S):
        for name in "ab":  # each second one request of each, which takes three
            open_places[await played.begin(name)] = name, played.clock.now
        for place in [place for place in open_places if place.done()]:
            name, since = open_places[place]
            waited[name] = max(waited[name], int(played.clock.now - since))
            if second % 3 == 0:
                del open_places[place]
                await played.end(place)
        played.clock.now += 1
    loads = sum(told.startswith("+") for told in played.told)
    assert 15 <= loads <= 21
    assert max(waited.values()) <= TURN_S + 10


async def test_a_client_that_sends_one_after_the_other_keeps_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.residents.REST_S", 0.02)
    played = Played()
    await played.end(await played.begin("a"))
    other = await played.begin("b")
    played.clock.now += 0.01
    await played.end(await played.begin("a"))
    assert played.told == ["+a"]
    played.clock.now += 0.03
    await other  # a timer looks
    assert played.told == ["+a", "-a", "+b"]
    await played.end(other)


async def test_one_that_waits_no_longer_changes_nothing() -> None:
    played = Played()
    first = await played.begin("a")
    other = await played.begin("b")
    played.clock.now += TURN_S
    held = await played.begin("a")
    assert not held.done()
    await played.end(other)
    assert held.done() and played.told == ["+a"]
    await played.end(first)
    await played.end(held)


async def test_cancelled_clients_leave_no_trace() -> None:
    played = Played()

    async def ask(name: str) -> None:
        with played.residents.use(name) as place:
            await place
            await asyncio.sleep(60)

    tasks = [asyncio.create_task(ask(name)) for name in "aabb"]
    await settled()
    for task in tasks:
        task.cancel()
    await settled()
    last = await played.begin("c")
    assert last.done() and played.memory == {"c"}


async def test_a_failure_reaches_those_who_wait_for_the_model() -> None:
    played = Played()
    played.broken = {"b"}
    first = await played.begin("a")
    waiting = [await played.begin("b"), await played.begin("b")]
    back = await played.begin("a")
    assert back.done()
    await played.end(first)
    await played.end(back)
    for place in waiting:
        with pytest.raises(ValueError, match="b is broken"):
            await place
        await played.end(place)
    assert (await played.begin("a")).done()


async def test_who_is_held_stays_and_who_is_idle_leaves() -> None:
    played = Played(3)
    for name in "ab":
        await played.end(await played.begin(name))
    played.clock.now += 100
    with played.residents.hold("a") as is_there, played.residents.hold("c") as is_not:
        assert is_there and not is_not
        played.residents.unload_idle(50)
        await settled()
        assert played.memory == {"a"}
    played.residents.unload_idle(50)
    await settled()
    assert not played.memory


async def test_what_others_have_loaded_counts() -> None:
    played = Played()
    played.memory = {"main"}
    played.residents.found(["main"], played.clock())
    assert played.residents.is_in("main")
    assert (await played.begin("b")).done() and played.told == ["-main", "+b"]
    played.residents.found(["main"], played.clock())
    assert played.residents.is_in("b"), "it is in use, whatever TorchServe says"


async def test_a_look_that_began_before_a_model_left_does_not_bring_it_back() -> None:
    played = Played()
    played.memory = {"main"}
    played.residents.found(["main"], played.clock())
    began = played.clock()
    played.clock.now += 1
    await played.end(await played.begin("b"))
    assert played.told == ["-main", "+b"]
    played.residents.found(["main", "b"], began)
    assert not played.residents.is_in("main")


async def test_a_model_is_lost_only_to_a_look_that_came_after_it() -> None:
    played = Played()
    played.residents.found(["a"], 10)
    played.residents.lost("a", 10)
    assert played.residents.is_in("a")
    played.residents.lost("a", 11)
    assert not played.residents.is_in("a")
