"""An engine alone, whose cores tell when it pauses."""

from collections.abc import Iterator

import pytest

from tests.support.engines import Bench, Cores


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    cores = Cores()
    monkeypatch.setattr("handlers.engine.loop.Cores", lambda: cores)
    return cores


@pytest.fixture
def bench(cores: Cores) -> Iterator[Bench]:
    bench = Bench(cores)
    yield bench
    bench.end_lease()
