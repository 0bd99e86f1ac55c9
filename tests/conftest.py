import json
from typing import Any

import pytest

from handlers.archive import HOME

EMBEDDED = HOME / "models" / "embedded"
SIDE: int = json.loads((EMBEDDED / "generation_config.json").read_text())["drawn_size"]  # the one size it draws, pixels


@pytest.fixture(scope="session")
def pipelines() -> dict[str, Any]:
    """The stock diffusers pipelines of the embedded model, the reference that every image is held against."""
    import torch

    from handlers.request import TASKS
    from handlers.weights import ModelSource, load_pipelines

    return load_pipelines(ModelSource(str(EMBEDDED), "test"), TASKS, torch.device("cpu"), torch.float32, None)
