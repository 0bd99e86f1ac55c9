"""Models in memory within a bound, when the TorchServe that has them dies. It is played."""

from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from handlers.catalogue import Catalogue, Contents
from tests.support.played_models import ALL, DREAM, INK, TorchServe
from tests.support.torchserve import client

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.residents.REST_S", 0)
    monkeypatch.setattr("proxy.restarts.SETTLE_S", 0)


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    catalogue = Catalogue(tmp_path)
    catalogue.write(Contents(models=(DREAM, INK)))
    return catalogue


@pytest.fixture
def bounded(catalogue: Catalogue, tmp_path: Path) -> dict[str, Any]:
    return {**ALL, "catalogue": str(tmp_path), "max_models": "1", "config": str(tmp_path / "config.json")}


class Restarted(TorchServe):
    """It dies with the first request for a model, and comes back with what it has at the start."""

    has_died = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/predictions/custom-dream":
            if not self.has_died:
                self.has_died, self.workers = True, {"all": 1}
                raise httpx.ReadError("cut")
            if "custom-dream" not in self.workers:
                return httpx.Response(404)
        return await super().__call__(request)


async def test_a_restart_puts_no_more_models_into_memory_than_fit(bounded: dict[str, Any]) -> None:
    restarted = Restarted()
    async with client(restarted, **bounded) as http, anyio.create_task_group() as tasks:

        async def ask(model: str) -> None:
            answer = await http.post("/txt2img", data={"prompt": "x", "model": model})
            assert answer.status_code == 200, answer.text

        for model in ("dream", "dream", "dream", "", "ink"):
            tasks.start_soon(ask, model)
    assert restarted.has_died and restarted.most == 1
    assert sorted(name for name, *_ in restarted.predictions) == ["all", *["custom-dream"] * 3, "custom-ink"]


async def test_a_model_that_does_not_load_after_a_restart_tells_why(
    catalogue: Catalogue, bounded: dict[str, Any]
) -> None:
    class Full(Restarted):
        def manage(self, request: httpx.Request, name: str) -> httpx.Response:
            if request.method == "POST" and self.has_died:
                catalogue.tell_failure("custom-dream", "the GPU's memory is full.")
                self.broken = {"custom-dream"}
            return super().manage(request, name)

    async with client(Full(), **bounded) as http:
        answer = await http.post("/custom/dream", data={"prompt": "x"})
        assert answer.status_code == 503
        assert answer.json()["message"] == "This model cannot be loaded: the GPU's memory is full."
        assert (await http.post("/txt2img", data={"prompt": "x"})).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_torchserve_that_dies_while_models_come_and_go_costs_no_request(
    bounded: dict[str, Any], method: str
) -> None:
    class Dying(TorchServe):
        has_died = False

        def manage(self, request: httpx.Request, name: str) -> httpx.Response:
            if request.method == method and not self.has_died:
                self.has_died, self.workers = True, {"all": 1}
                raise httpx.ReadError("cut")
            return super().manage(request, name)

    dying = Dying()
    async with client(dying, **bounded) as http, anyio.create_task_group() as tasks:

        async def ask(model: str) -> None:
            answer = await http.post("/txt2img", data={"prompt": "x", "model": model})
            assert answer.status_code == 200, answer.text

        for model in ("dream", "dream", "", "ink"):
            tasks.start_soon(ask, model)
    assert dying.has_died and dying.most == 1
