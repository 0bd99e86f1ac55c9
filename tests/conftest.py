"""What all tests share."""

import os

# Threads of OpenMP that wait awake take a busy machine's cores from those that work. Set before torch is imported; the
# servers that tests start inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import hub
from tests.support.paths import CONFIGS, EMBEDDED


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The end-to-end tests share their servers, so one process runs all of them, and begins with them."""
    for item in items:
        if is_end_to_end(item):
            item.add_marker(pytest.mark.xdist_group("servers"))
    items.sort(key=is_end_to_end, reverse=True)


def is_end_to_end(item: pytest.Item) -> bool:
    return "/tests/e2e/" in item.path.as_posix()


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


@pytest.fixture
def served_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """A hub with a model, and a client's environment that knows no other hub, no cache and no token."""
    from tests.support import tiny_models  # imports torch, which most tests do without

    with hub.serving() as serving:
        serving.models[hub.MODEL.location] = tiny_models.save("sd1", tmp_path / "model")
        tiny_models.save("sd1", tmp_path / "model", variant="fp16")
        tiny_models.save("sd1", tmp_path / "model", safe_serialization=False)
        (tmp_path / "model" / "README.md").write_text("a model card that no pipeline needs")
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "SD_CONFIG"):
            monkeypatch.delenv(variable, raising=False)
        yield serving
