"""A server with a tiny model for all tests of faults that need no other one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import Running, running


@pytest.fixture(scope="session")
def combined(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Running]:
    options = ("--model", str(tiny_model))
    with running(tmp_path_factory.mktemp("combined"), *options) as instance:
        yield instance
