"""Models that leave memory when nobody uses them, in front of a TorchServe that is played by a transport."""

import json
from collections.abc import Callable

import anyio
import httpx
import pytest

from handlers.wire import DESCRIBE, TASK_HEADER
from proxy.metrics import COUNTERS
from tests.support.running import HANG_S
from tests.support.torchserve import RESULT, chunks, client, registered

pytestmark = pytest.mark.anyio
SOON = 0.05 / 60  # minutes
ACTIVITY = dict.fromkeys([*COUNTERS, "open_requests"], 0) | {"stage_seconds": {}}
DESCRIBED = json.dumps({"result": {"models": [{"model": "m", "activity": ACTIVITY}]}}).encode() + b"\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class TorchServe:
    """Three archives with a worker each, which can be scaled to none; requests for `held` take until it is set."""

    def __init__(self) -> None:
        self.workers = {"txt2img": 1, "img2img": 1, "masking": 1}
        self.scaled: list[tuple[str, int]] = []
        self.predictions: list[str] = []
        self.held: dict[str, anyio.Event] = {}
        self.scaling: anyio.Event | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        archive = request.url.path.rpartition("/")[2]
        if request.url.port == 8081 and request.method == "PUT":
            assert request.url.params["synchronous"] == "true"
            workers = int(request.url.params["min_worker"])
            self.scaled.append((archive, workers))
            if self.scaling and not workers:
                await self.scaling.wait()
            self.workers[archive] = workers
            return httpx.Response(200, json={})
        if request.url.path == "/models":
            return registered(self.workers)
        if request.url.port == 8081:
            return httpx.Response(200, json=[{"workers": [{"status": "READY"}] * self.workers[archive]}])
        if request.url.port == 8082:
            return httpx.Response(200, content=b"")
        assert self.workers[archive], "TorchServe would let it wait for ever"
        if request.headers[TASK_HEADER] == DESCRIBE:
            return httpx.Response(200, content=chunks([DESCRIBED]))
        self.predictions.append(archive)
        if archive in self.held:
            await self.held[archive].wait()
        assert self.workers[archive], "its client would hang"
        return httpx.Response(200, content=chunks([RESULT]))


@pytest.fixture
def torchserve() -> TorchServe:
    return TorchServe()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(HANG_S):
        while not condition():
            await anyio.sleep(0.01)


async def ask(http: httpx.AsyncClient, task: str = "txt2img") -> None:
    assert (await http.post(f"/{task}", data={"prompt": "x"})).status_code == 200


async def test_who_is_not_used_is_unloaded_and_loaded_by_the_next_request(torchserve: TorchServe) -> None:
    async with client(torchserve, idle_unload=SOON) as http:
        await until(lambda: not any(torchserve.workers.values()))
        # asking how it is does not load it
        assert (await http.get("/ping")).status_code == 200
        models = (await http.get("/models")).json()["models"]
        assert {model["archive"]: model["loaded"] for model in models} == dict.fromkeys(torchserve.workers, False)
        assert (await http.get("/metrics")).status_code == 200
        assert not any(torchserve.workers.values())
        torchserve.scaled.clear()
        torchserve.held["txt2img"] = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, http)
            await until(lambda: len(torchserve.predictions) == 3)
            torchserve.held["txt2img"].set()
        assert torchserve.scaled[0] == ("txt2img", 1) and torchserve.scaled.count(("txt2img", 1)) == 1
        assert torchserve.predictions == ["txt2img"] * 3
        await until(lambda: not torchserve.workers["txt2img"])


async def test_without_the_setting_nothing_is_unloaded(torchserve: TorchServe) -> None:
    async with client(torchserve) as http:
        await ask(http)
        models = (await http.get("/models")).json()["models"]
        assert all(model["loaded"] for model in models) and not torchserve.scaled
        torchserve.workers["txt2img"] = 0
        assert (await http.get("/ping")).status_code == 503


async def test_a_model_that_generates_stays(torchserve: TorchServe) -> None:
    torchserve.held["txt2img"] = anyio.Event()
    async with client(torchserve, idle_unload=SOON) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, http)
        for _ in range(3):  # the others come and go meanwhile
            await ask(http, "img2img")
            await until(lambda: not torchserve.workers["img2img"])
        assert torchserve.workers["txt2img"]
        torchserve.held["txt2img"].set()


async def test_a_request_that_comes_while_it_is_unloaded_is_answered(torchserve: TorchServe) -> None:
    torchserve.scaling = anyio.Event()
    async with client(torchserve, idle_unload=SOON) as http, anyio.create_task_group() as tasks:
        await until(lambda: torchserve.scaled)
        (archive, _) = torchserve.scaled[0]
        tasks.start_soon(ask, http, archive)
        assert (await http.get("/models")).status_code == 200
        torchserve.scaling.set()
    assert archive in torchserve.predictions


async def test_a_proxy_that_finds_unloaded_models_loads_them_to_describe_them(torchserve: TorchServe) -> None:
    torchserve.workers = dict.fromkeys(torchserve.workers, 0)
    async with client(torchserve, idle_unload=60) as http:
        assert (await http.get("/ping")).status_code == 200
        assert (await http.get("/metrics")).status_code == 200
        assert not torchserve.scaled
        assert all(model["loaded"] for model in (await http.get("/models")).json()["models"])
