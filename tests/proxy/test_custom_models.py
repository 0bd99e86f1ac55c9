"""Custom models in front of a TorchServe that is played by a transport."""

import json
from pathlib import Path

import anyio
import httpx
import pytest

from tests.support.torchserve import RESULT, client, registered, serving

pytestmark = pytest.mark.anyio

MINE = {"model_path": "/models/mine", "ui_label": "Mine", "url_path": "mine", "requires_safety_checker": False}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"custom_models": [MINE, {"model_path": "a/b", "url_path": "b"}]}))
    return file


class Management:
    """TorchServe's side: an archive that is registered by the first request for it."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.registered: list[str] = []
        self.requests: list[tuple[str, str]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if request.url.path == "/models" and request.method == "GET":
            return registered(file.removesuffix(".mar") for file in self.registered)
        if request.url.port != 8081 or not name.startswith(("custom", "models")):
            self.requests.append((request.url.path, request.headers.get("x-task", "")))
            return serving(RESULT)(request)
        if request.method == "POST":
            assert dict(request.url.params)["synchronous"] == "true"
            await anyio.sleep(0.05)  # loading takes a while
            self.registered.append(request.url.params["url"])
            return httpx.Response(self.status, json={})
        if request.method == "DELETE":
            self.registered.remove(f"{name}.mar")
            return httpx.Response(200)
        return httpx.Response(200 if f"{name}.mar" in self.registered else 404, json=[{"workers": []}])


async def test_the_list_is_a_bare_array(config: Path) -> None:
    async with client(serving(RESULT), config=str(config)) as http:
        answer = await http.get("/custom_models")
        assert answer.json() == [
            MINE,
            {"model_path": "a/b", "ui_label": "b", "url_path": "b", "requires_safety_checker": True},
        ]
    async with client(serving(RESULT), config=str(config.with_name("none.json"))) as http:
        assert (await http.get("/custom_models")).json() == []


async def test_a_custom_model_is_loaded_once_with_its_first_requests(config: Path) -> None:
    management = Management()
    async with client(management, config=str(config)) as http, anyio.create_task_group() as tasks:

        async def ask() -> None:
            assert (await http.post("/custom/mine", data={"prompt": "x"})).status_code == 200

        for _ in range(3):
            tasks.start_soon(ask)
    assert management.registered == ["custom-mine.mar"]
    predictions = [request for request in management.requests if "predictions" in request[0]]
    assert predictions == [("/predictions/custom-mine", "txt2img")] * 3


@pytest.mark.parametrize(("path", "task"), [("", "txt2img"), ("/img2img", "img2img"), ("/masking/", "masking")])
async def test_a_custom_model_does_each_task(tmp_path: Path, path: str, task: str) -> None:
    management, file = Management(), tmp_path / "config.json"
    # a model may have a task's name
    file.write_text(json.dumps({"custom_models": [MINE, {"model_path": "a", "url_path": "masking"}]}))
    async with client(management, config=str(file)) as http:
        for name in ("mine", "masking"):
            assert (await http.post(f"/custom/{name}{path}", data={"prompt": "x"})).status_code == 200
            assert management.requests[-1] == (f"/predictions/custom-{name}", task)
        assert (await http.post("/custom/other" + path)).status_code == 404
        assert (await http.post("/custom/mine/sketch")).status_code == 404


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(404, "still being prepared"), (500, "cannot be loaded: its worker ended and said nothing")],
)
async def test_one_that_does_not_load_is_tried_again_next_time(
    config: Path, status: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.loading.FAILED_S", 0)
    management = Management(status)
    async with client(management, config=str(config)) as http:
        answer = await http.post("/custom/mine", data={"prompt": "x"})
        assert answer.status_code == 503 and sentence in answer.json()["message"]
        assert "retry-after" in answer.headers
        management.registered, management.status = [], 200
        assert (await http.post("/custom/mine", data={"prompt": "x"})).status_code == 200


async def test_an_unknown_name_is_a_404_that_knows_the_others(config: Path) -> None:
    async with client(serving(RESULT), config=str(config)) as http:
        answer = await http.post("/custom/other", data={"prompt": "x"})
        assert answer.status_code == 404
        assert answer.json()["message"] == "There is no custom model 'other': use b, mine."
        config.unlink()
        answer = await http.post("/custom/other", data={"prompt": "x"})
    sentence = "There is no custom model 'other': config.json and the folder of models have none that can be served."
    assert (answer.status_code, answer.json()["message"]) == (404, sentence)


async def test_a_model_that_is_added_is_there_without_a_restart(config: Path) -> None:
    async with client(Management(), config=str(config)) as http:
        assert (await http.post("/custom/new", data={"prompt": "x"})).status_code == 404
        config.write_text(json.dumps({"custom_models": [{"model_path": "a/new", "url_path": "new"}]}))
        assert (await http.post("/custom/new", data={"prompt": "x"})).status_code == 200
        assert [model["url_path"] for model in (await http.get("/custom_models")).json()] == ["new"]


async def test_a_faulty_file_leaves_the_last_good_one(config: Path) -> None:
    good = config.read_text()
    config.write_text("[" * 100_000)
    async with client(Management(), config=str(config)) as http:
        answer = await http.get("/custom_models")
        assert answer.status_code == 500 and "config.json is faulty" in answer.json()["message"]
        config.write_text(good)
        assert len((await http.get("/custom_models")).json()) == 2
        config.write_text("{")
        assert len((await http.get("/custom_models")).json()) == 2
        assert (await http.post("/custom/mine", data={"prompt": "x"})).status_code == 200
        config.write_text(json.dumps({"custom_models": [{"model_path": "a/b", "url_path": 5}]}))
        assert len((await http.get("/custom_models")).json()) == 2
        assert (await http.post("/txt2img", data={"prompt": "x", "model": "mine"})).status_code == 200
        config.unlink()
        assert (await http.get("/custom_models")).json() == []


async def test_models_lists_those_that_are_loaded(config: Path) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/models":
            return registered(["txt2img", "img2img", "masking", "custom-mine"])
        return serving(b'{"result": {"models": [{"model": "m"}]}}\n')(request)

    async with client(respond, config=str(config)) as http:
        archives = [model["archive"] for model in (await http.get("/models")).json()["models"]]
    assert archives == ["txt2img", "img2img", "masking", "custom-mine"]
