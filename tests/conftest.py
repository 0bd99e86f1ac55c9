"""What all tests share."""

import os

# Threads of OpenMP that wait awake take a busy machine's cores from those that work. Set before torch is imported; the
# servers that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import Any

import pytest

from tests.support.paths import CONFIGS, EMBEDDED


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The end-to-end tests share their servers, so one process runs all of them, and begins with them."""
    servers = [item for item in items if "/tests/e2e/" in item.path.as_posix()]
    for item in servers:
        item.add_marker(pytest.mark.xdist_group("servers"))
    items[:] = servers + [item for item in items if item not in servers]


@pytest.fixture(scope="session")
def pipelines() -> dict[str, Any]:
    """The stock diffusers pipelines of the embedded model, the reference that every image is compared with."""
    import torch

    from handlers.config import HandlerConfig
    from handlers.pipelines.loading import load_pipelines
    from handlers.wire import TASKS

    return load_pipelines(EMBEDDED, TASKS, torch.device("cpu"), torch.float32, HandlerConfig(), CONFIGS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
