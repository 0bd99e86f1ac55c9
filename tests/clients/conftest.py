"""A server for other programs' libraries, which share it."""

from collections.abc import Iterator

import pytest

from tests.support.running import Running, running

LIMIT = 3  # open requests of a client: few, so that a full queue is met soon


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("clients"), SD_MAX_PER_CLIENT=str(LIMIT)) as instance:
        yield instance
