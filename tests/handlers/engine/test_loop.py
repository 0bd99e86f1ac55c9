"""The engine alone. When it pauses it leaves its cores, which the tests wait for: they count passes, not seconds."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from handlers.engine.loop import STARTS, Engine
from handlers.engine.pacing import Pacing
from handlers.engine.scheduling import Slot
from handlers.errors import InternalError, InvalidRequest, ModelError, OutOfMemory, RequestError
from tests.support.clock import Clock
from tests.support.engines import SOON_S, Batcher, Bench, Cores, Decoder, Request


def test_the_model_is_loaded_in_the_engines_thread(cores: Cores) -> None:
    threads: list[str] = []

    def load() -> Any:
        threads.append(threading.current_thread().name)
        return loaded

    loaded: Any = SimpleNamespace(batcher=Batcher(), decoder=Decoder())
    assert Engine(load, Pacing(Clock())).loaded is loaded
    assert threads == ["engine"]


@pytest.mark.parametrize("error", [ModelError("There is no model."), KeyError("a fault"), SystemExit(3)])
def test_the_constructor_raises_what_loading_raises(cores: Cores, error: BaseException) -> None:
    def load() -> Any:
        raise error

    with pytest.raises(type(error)) as raised:
        Engine(load)
    assert raised.value is error


def test_what_is_called_runs_in_order_and_between_steps(bench: Bench) -> None:
    done: list[str] = []
    first, second = Request(steps=10**9), Request(steps=10**9)
    held, ran = threading.Event(), threading.Event()
    bench.engine.call(lambda: held.wait(SOON_S))
    bench.engine.open(first)  # type: ignore[arg-type]
    bench.engine.call(lambda: done.append(f"opened {first.collected}"))
    bench.engine.open(second)  # type: ignore[arg-type]
    bench.engine.cancel(first)  # type: ignore[arg-type]
    bench.engine.call(lambda: done.append(f"cancelled {first.was_cancelled}"))
    bench.engine.call(lambda: done.append(threading.current_thread().name))
    bench.engine.call(ran.set)
    held.set()
    assert ran.wait(SOON_S)
    bench.batcher.wait_for(1)
    # the first request was gone before a pass saw it
    assert done == ["opened 0", "cancelled True", "engine"] and first.collected == 0 and second.collected > 0


def test_a_request_that_has_ended_can_still_be_cancelled(bench: Bench) -> None:
    request, other = Request(), Request()
    bench.open(request)
    assert request.ended.wait(SOON_S)
    bench.engine.cancel(request)  # type: ignore[arg-type]
    bench.open(other)
    assert other.ended.wait(SOON_S) and request.was_cancelled


def test_without_a_lease_it_pauses_and_with_the_next_call_it_steps_again(bench: Bench) -> None:
    request = Request(steps=10**9)
    bench.open(request)
    bench.until_paused()
    assert bench.batcher.forwards == 1  # a message is worth one pass
    for calls in (1, 2):
        before = bench.batcher.forwards
        bench.engine.wait(has_news=True)
        bench.batcher.wait_for(before + 20)  # it steps by itself as long as the clock stands still
        bench.clock.now += 1
        bench.until_paused()
        assert bench.batcher.forwards >= 20 * calls
    assert request.slots[0].job.outputs[:1] == ["output"] == request.previews[:1]


def test_with_nothing_to_do_it_pauses_though_it_has_a_lease(bench: Bench) -> None:
    request = Request(steps=3)
    bench.engine.wait(has_news=True)
    bench.open(request)
    assert request.ended.wait(SOON_S)
    bench.until_paused()
    assert bench.batcher.forwards == 3


def test_a_request_that_has_ended_is_dropped(bench: Bench) -> None:
    short, longer = Request(steps=1), Request(steps=10**9)
    bench.open(short, longer)
    bench.until_paused()
    assert short.ending == b"done" and longer.ending is None
    passes = short.collected, longer.collected
    bench.one_pass()
    assert short.collected == passes[0] and longer.collected > passes[1]


def test_a_fault_in_a_step_fails_every_open_request_and_the_next_one_is_served(bench: Bench) -> None:
    def fault(slots: list[Slot]) -> Any:
        raise KeyError("a fault")

    usual, bench.batcher.run = bench.batcher.run, fault
    bench.engine.wait(has_news=True)
    requests = [Request(steps=5), Request(steps=5)]
    bench.open(*requests)
    for request in requests:
        assert request.ended.wait(SOON_S)
        assert isinstance(request.error, InternalError)
        assert request.error.message == "This is a fault of the server; its log has the cause."
    bench.until_paused()
    bench.batcher.run = usual
    following = Request(steps=5)
    bench.open(following)
    assert following.ended.wait(SOON_S) and following.error is None


def test_a_call_that_fails_ends_its_own_job(bench: Bench) -> None:
    unlucky, lucky = Request(steps=5), Request(steps=2)

    def run(slots: list[Slot]) -> Any:
        return [(slot, InternalError("a fault") if slot.owner is unlucky else "output") for slot in slots]

    bench.batcher.run = run
    bench.engine.wait(has_news=True)
    bench.open(unlucky, lucky)
    assert unlucky.ended.wait(SOON_S) and lucky.ended.wait(SOON_S)
    assert isinstance(unlucky.error, InternalError) and not unlucky.previews
    assert lucky.error is None and lucky.previews == ["output", "output"]


@pytest.mark.parametrize(("error", "releases"), [(OutOfMemory("no room"), 1), (InvalidRequest("a bad field"), 0)])
def test_memory_is_released_after_a_request_that_had_too_little(
    bench: Bench, error: RequestError, releases: int
) -> None:
    bench.batcher.run = lambda slots: [(slot, error) for slot in slots]
    request = Request()
    bench.open(request)
    bench.until_paused()
    assert request.error is error and bench.batcher.memory.releases == releases


def test_one_pass_starts_a_few_jobs(bench: Bench) -> None:
    request = Request(steps=10**9, jobs=STARTS + 2)
    bench.open(request)
    bench.until_paused()
    started = [sum(slot.job.started for slot in request.slots)]
    bench.one_pass()
    assert [*started, sum(slot.job.started for slot in request.slots)] == [STARTS, STARTS + 2]
    assert bench.batcher.activity.started_requests == 1 and request.queued_since is None


def test_a_request_waits_in_the_queue_until_its_first_job_starts(bench: Bench) -> None:
    held = threading.Event()
    bench.cores.left.clear()
    bench.engine.call(lambda: held.wait(SOON_S))
    bench.engine.open(Request(steps=10**9))  # type: ignore[arg-type]
    bench.clock.now += 3
    held.set()
    bench.until_paused()
    assert bench.batcher.activity.queue_seconds == 3


def test_one_pass_starts_one_job_that_encodes_an_image(bench: Bench) -> None:
    with_images, without = Request(steps=10**9, jobs=2, has_image=True), Request(steps=10**9)
    bench.open(with_images, without)
    bench.until_paused()
    assert [slot.job.started for slot in with_images.slots + without.slots] == [True, False, True]
    bench.one_pass()
    assert all(slot.job.started for slot in with_images.slots)


def test_many_jobs_with_images_hold_up_no_other_request(bench: Bench) -> None:
    many, later = Request(steps=10**9, jobs=32, has_image=True), Request(steps=10**9, jobs=2)
    bench.open(many, later)
    bench.until_paused()
    assert [slot.job.started for slot in later.slots] == [True, True]
    assert sum(slot.job.started for slot in many.slots) == 1


def test_requests_start_their_jobs_in_turn(bench: Bench) -> None:
    requests = [Request(steps=10**9, jobs=STARTS) for _ in range(2)]
    bench.open(*requests)
    bench.until_paused()
    assert [sum(slot.job.started for slot in request.slots) for request in requests] == [STARTS // 2] * 2


def test_the_decoder_may_wait_for_the_device_if_no_job_waits_for_a_forward(bench: Bench) -> None:
    bench.one_pass()
    bench.open(Request(steps=10**9))
    bench.until_paused()
    assert bench.decoder.may_wait[-2:] == [True, False]


class Patient(Pacing):
    """Calls wait until there is something to say."""

    def begin_call(self) -> float:
        super().begin_call()
        return SOON_S


def ended_by_the_pool(bench: Bench, request: Request) -> None:
    bench.batcher.wait_for(1)
    request.end(b"an image")
    request.announce(request)


def with_progress(bench: Bench, request: Request) -> None:
    request.has_progress = True


def failed(bench: Bench, request: Request) -> None:
    bench.batcher.run = lambda slots: [(slot, InternalError("a fault")) for slot in slots]


@pytest.mark.parametrize("happens", [ended_by_the_pool, with_progress, failed])
def test_a_call_returns_as_soon_as_there_is_something_to_say(
    cores: Cores, happens: Callable[[Bench, Request], None]
) -> None:
    bench, request = Bench(cores, Patient), Request(steps=10**9)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(bench.engine.wait, has_news=False)
        bench.open(request)
        happens(bench, request)
        call.result(SOON_S / 2)
    bench.end_lease()


def test_a_call_with_news_waits_for_nothing(cores: Cores) -> None:
    bench = Bench(cores, Patient)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(bench.engine.wait, has_news=True).result(SOON_S / 2)
