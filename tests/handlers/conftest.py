"""A handler with a tiny model, for each file that needs one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend


@pytest.fixture(scope="module")
def handler(tiny_model: Path) -> CombinedHandler:
    handler = CombinedHandler()
    handler.initialize(Context(model=str(tiny_model), max_batch_rows=16))
    return handler


@pytest.fixture
def frontend(handler: CombinedHandler) -> Iterator[Frontend]:
    yield Frontend(handler)
    assert not handler.generations
