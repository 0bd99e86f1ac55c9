"""A server for all tests of faults that need no other one."""

from collections.abc import Iterator

import pytest

from tests.support.running import Running, running


@pytest.fixture(scope="session")
def combined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("combined"), "--archives", "combined") as instance:
        yield instance
