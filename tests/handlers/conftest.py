"""A handler with the embedded model, for each file that needs one."""

from collections.abc import Iterator

import pytest

from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend


@pytest.fixture(scope="module")
def handler() -> CombinedHandler:
    handler = CombinedHandler()
    handler.initialize(Context(max_batch_rows=16))
    return handler


@pytest.fixture
def frontend(handler: CombinedHandler) -> Iterator[Frontend]:
    yield Frontend(handler)
    assert not handler.generations
