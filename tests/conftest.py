import json
from typing import Any

import pytest

from admin.paths import HOME

EMBEDDED = HOME / "models" / "embedded"
CONFIGS = HOME / "models" / "configs"
SIDE: int = json.loads((EMBEDDED / "generation_config.json").read_text())["drawn_size"]  # the one size it draws, pixels


@pytest.fixture(scope="session")
def pipelines() -> dict[str, Any]:
    """The stock diffusers pipelines of the embedded model, the reference that every image is held against."""
    import torch

    from handlers.config import HandlerConfig
    from handlers.pipelines.loading import load_pipelines
    from handlers.wire import TASKS

    return load_pipelines(EMBEDDED, TASKS, torch.device("cpu"), torch.float32, HandlerConfig(), CONFIGS)
