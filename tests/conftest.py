"""What all tests share."""

import os
import tempfile
from pathlib import Path

# One thread for each process. On a busy machine, OpenMP's threads wait for each other at every small operation, and
# those that wait awake take the cores from those that work. Beside three busy programs, the same images took 247 s with
# two threads and 29 s with one. Set before torch is imported; the servers that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# the conversions of test models, which one run leaves for the next
os.environ["SD_CACHE_DIR"] = str(Path(tempfile.gettempdir(), "sd-test-conversions"))

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import hub
from tests.support.paths import CONFIGS, EMBEDDED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The end-to-end tests take longest, so a run begins with them."""
    items.sort(key=lambda item: not is_end_to_end(item.nodeid))


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The end-to-end tests share their servers, so one process runs all of them.

    xdist's own groups (`--dist loadgroup`) have no effect since pytest 9.2, which does not let it change a test's id.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            # of the others a file a process, since some have fixtures that take long
            return "servers" if is_end_to_end(nodeid) else nodeid.partition("::")[0]

    return Scheduling(config, log)


def is_end_to_end(nodeid: str) -> bool:
    return nodeid.startswith("tests/e2e/")


@pytest.fixture(scope="session")
def pipelines() -> dict[str, Any]:
    """The stock diffusers pipelines of the embedded model, the reference that every image is compared with."""
    import torch

    from handlers.config import HandlerConfig
    from handlers.pipelines.loading import load_pipelines
    from handlers.wire import TASKS

    return load_pipelines(EMBEDDED, TASKS, torch.device("cpu"), torch.float32, HandlerConfig(), CONFIGS)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that generates in a twentieth of the embedded one's time, for tests of everything else."""
    from tests.support import tiny_models  # imports torch, which most tests do without

    return tiny_models.save_with_checker(tmp_path_factory.mktemp("tiny") / "model")


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
