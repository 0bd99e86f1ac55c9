from typing import Any

import pytest

from tests.support.paths import CONFIGS, EMBEDDED


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
