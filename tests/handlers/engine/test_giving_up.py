"""When the worker's process ends itself, so that TorchServe starts another one."""

import os
import threading
from typing import Any

import pytest

from handlers.engine.pacing import STUCK_S
from handlers.engine.scheduling import Slot
from handlers.errors import InternalError
from tests.support.engines import SOON_S, Bench, Request


class Exited(Exception):
    pass


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the worker gives up. As in a process that ends, the engine's thread goes no further."""
    exited = threading.Event()

    def leave(code: int) -> None:
        assert code == 1
        exited.set()
        if threading.current_thread().name == "engine":
            threading.Event().wait()
        raise Exited

    monkeypatch.setattr(os, "_exit", leave)
    return exited


def test_a_step_that_never_ends_ends_the_worker(bench: Bench, exits: threading.Event) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(slots: list[Slot]) -> Any:
        begun.set()
        go_on.wait(SOON_S)
        return []

    bench.batcher.run = hang
    bench.open(Request())
    assert begun.wait(SOON_S)
    bench.engine.wait(has_news=True)
    assert not exits.is_set()
    bench.clock.now += STUCK_S + 1
    with pytest.raises(Exited):
        bench.engine.wait(has_news=True)
    go_on.set()


def test_an_engine_that_ends_ends_the_worker(bench: Bench, exits: threading.Event) -> None:
    def fault() -> None:
        raise KeyError("a fault between two steps")

    bench.engine.call(fault)
    assert exits.wait(SOON_S)


def test_a_gpu_that_does_no_more_work_ends_the_worker(bench: Bench, exits: threading.Event) -> None:
    bench.batcher.run = lambda slots: [(slot, InternalError("a fault")) for slot in slots]
    request = Request()
    bench.open(request)
    assert request.ended.wait(SOON_S)
    bench.until_paused()
    assert not exits.is_set()
    bench.batcher.memory.broken = True
    bench.open(Request())
    assert exits.wait(SOON_S)
    bench.cores.left.set()  # its thread went no further
