"""Models in memory within a bound, when the TorchServe that has them dies. It is played."""

from typing import Any

import anyio
import httpx
import pytest

from handlers.catalogue import Catalogue
from tests.support.played_models import TorchServe
from tests.support.running import HANG_S
from tests.support.torchserve import client

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.residents.REST_S", 0)
    monkeypatch.setattr("proxy.restarts.SETTLE_S", 0)


class Restarted(TorchServe):
    """It dies with the first request for a model, and comes back with what it has at the start."""

    has_died = False

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/predictions/custom-dream" and not self.has_died:
            self.has_died, self.workers = True, {"all": 1}
            raise httpx.ReadError("cut")
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


@pytest.mark.parametrize("models", [("dream", "dream", "", "ink"), ("dream", "dream", "ink", "")])
@pytest.mark.parametrize(
    ("method", "name", "is_back"),
    [("POST", "models", False), ("PUT", "all", False), ("PUT", "custom-dream", False), ("PUT", "custom-dream", True)],
)
async def test_a_torchserve_that_dies_while_models_come_and_go_costs_no_request(
    bounded: dict[str, Any], models: tuple[str, ...], method: str, name: str, is_back: bool
) -> None:
    class Dying(TorchServe):
        has_died = False

        def manage(self, request: httpx.Request, asked: str) -> httpx.Response:
            if (request.method, asked) == (method, name) and not self.has_died:
                self.has_died, self.workers = True, {"all": 1}
                if not is_back:  # otherwise it does not know the model any more, and says so
                    raise httpx.ReadError("cut")
            return super().manage(request, asked)

    dying = Dying()
    async with client(dying, **bounded) as http, anyio.create_task_group() as tasks:

        async def ask(model: str) -> None:
            answer = await http.post("/txt2img", data={"prompt": "x", "model": model})
            assert answer.status_code == 200, answer.text

        for model in models:
            tasks.start_soon(ask, model)
    assert dying.has_died and dying.most == 1


async def test_a_model_is_not_forgotten_while_torchserve_does_not_say_what_it_has(bounded: dict[str, Any]) -> None:
    class Busy(TorchServe):
        refused = 0

        def manage(self, request: httpx.Request, name: str) -> httpx.Response:
            if self.predictions and "limit" in request.url.params:
                self.refused += 1
                raise httpx.ReadTimeout("busy")
            return super().manage(request, name)

    busy = Busy()
    async with client(busy, **bounded) as http:
        for model in ("dream", "ink", ""):
            answer = await http.post("/txt2img", data={"prompt": "x", "model": model})
            assert answer.status_code == 200, answer.text
    assert busy.refused and busy.most == 1


async def test_a_torchserve_that_has_forgotten_a_model_twice_costs_no_request(bounded: dict[str, Any]) -> None:
    class Forgetful(TorchServe):
        times = 2

        async def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/predictions/custom-dream" and self.times:
                self.times -= 1
                return httpx.Response(404)
            return await super().__call__(request)

    forgetful = Forgetful()
    async with client(forgetful, **bounded) as http:
        answer = await http.post("/custom/dream", data={"prompt": "x"})
    assert answer.status_code == 200 and not forgetful.times


async def test_a_model_that_is_gone_is_loaded_again_though_an_older_request_still_has_it(
    bounded: dict[str, Any],
) -> None:
    served = TorchServe()
    served.held["custom-dream"] = old_connection = anyio.Event()  # which is not yet broken
    with anyio.fail_after(HANG_S):
        async with client(served, **bounded) as http, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: http.post("/custom/dream", data={"prompt": "x"}))
            while not served.predictions:
                await anyio.sleep(0.01)
            served.held.clear()
            served.workers = {"all": 1}
            assert (await http.post("/custom/dream", data={"prompt": "y"})).status_code == 200
            old_connection.set()
    assert served.most == 1


async def test_while_it_is_found_out_what_a_new_torchserve_has_nothing_is_loaded(
    bounded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests for a model are cut, one after the other, while another model waits for its room."""
    monkeypatch.setattr("proxy.residents.TURN_S", 0.05)
    list_asked, waits_for_room = anyio.Event(), anyio.Event()

    prompts: list[bytes] = []  # those that were cut

    class Died(TorchServe):
        async def __call__(self, request: httpx.Request) -> httpx.Response:
            if waits_for_room.is_set() and request.url.path == "/models" and "limit" in request.url.params:
                list_asked.set()
                await anyio.sleep(0.2)  # in which the second one is cut, and nothing else may happen
            if request.url.path == "/predictions/custom-dream" and len(prompts) < 2:
                prompts.append(await request.aread())
                await (waits_for_room if len(prompts) == 1 else list_asked).wait()
                self.workers = {"all": 1}
                raise httpx.ReadError("cut")
            return await super().__call__(request)

    died = Died()
    async with client(died, **bounded) as http:

        async def ask(model: str) -> None:
            answer = await http.post("/txt2img", data={"prompt": "x", "model": model})
            assert answer.status_code == 200, answer.text

        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, "dream")
                tasks.start_soon(ask, "dream")
                while len(prompts) < 2:
                    await anyio.sleep(0.01)
                tasks.start_soon(ask, "ink")
                await anyio.sleep(0.1)  # longer than a turn
                waits_for_room.set()
    assert died.most == 1
