"""Requests that name their model, and a bound of models in memory, in front of a played TorchServe."""

from typing import Any

import anyio
import httpx
import pytest

from handlers.catalogue import FAILED, PREPARING, Catalogue, CatalogueEntry, Contents
from tests.support.played_models import DREAM, INK, TorchServe
from tests.support.running import HANG_S
from tests.support.torchserve import client

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.residents.REST_S", 0)


@pytest.fixture
def torchserve() -> TorchServe:
    return TorchServe()


@pytest.mark.parametrize(
    ("name", "archive"),
    [("", "all"), ("default", "all"), ("main", "all"), ("dream", "custom-dream"), ("dream shaper", "custom-dream")],
)
@pytest.mark.parametrize("how", ["data", "files", "json"])
async def test_a_request_names_its_model(
    torchserve: TorchServe, bounded: dict[str, Any], name: str, archive: str, how: str
) -> None:
    fields = {"prompt": "a model", "model": name, "init_image": "x" * 1000}
    body = {how: {key: (None, value) for key, value in fields.items()} if how == "files" else fields}
    async with client(torchserve, **bounded) as http:
        for path in ("/txt2img", "/img2img", "/masking", "/v1/jobs?kind=txt2img"):
            answer = await http.post(path, **body)
            assert answer.is_success, answer.text
            if answer.status_code == 202:
                await http.get(f"{answer.headers['location']}?wait=60")
            sent, task, received = torchserve.predictions[-1]
            assert sent == archive and task in (path[1:], "txt2img")
            assert b"init_image" in received


async def test_a_body_without_the_word_is_not_read(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    async with client(torchserve, **bounded) as http:
        for body in (b"{ what is wrong, the handler says", b'{"model" as well'):
            answer = await http.post("/txt2img", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 200
        answer = await http.post("/txt2img", json={"prompt": "x", "model": 3})
        assert answer.status_code == 400 and answer.json()["message"] == "model must be the name of a model, as text."


async def test_an_unknown_model_is_refused_with_the_nearest(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    async with client(torchserve, **bounded) as http:
        answer = await http.post("/txt2img", data={"prompt": "x", "model": "draem"})
        assert answer.status_code == 400
        assert answer.json()["message"] == "model 'draem' is not one of the models here: use dream."
        answer = await http.post("/v1/images/generations", json={"prompt": "x", "model": "draem"})
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
        answer = await http.post("/custom/inc", data={"prompt": "x"})
        assert answer.status_code == 404 and answer.json()["message"].endswith("'inc': use ink.")
        answer = await http.post("/custom/ink", data={"prompt": "x", "model": "dream"})
        assert answer.status_code == 400 and "leave out the field" in answer.json()["message"]
        assert (await http.post("/custom/ink", data={"prompt": "x", "model": "ink"})).status_code == 200
        assert (await http.post("/custom/INK", data={"prompt": "x"})).status_code == 200
        answer = await http.post("/custom/ink", data={"prompt": "x", "model": "main"})
        assert answer.status_code == 400 and "another model than the address" in answer.json()["message"]


async def test_openai_clients_name_it_too(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    async with client(torchserve, **bounded) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["main", "dream", "ink"]
        assert (await http.get("/v1/models/ink")).status_code == 200
        for name, archive in (("ink", "custom-ink"), ("gpt-image-1", "all"), ("main", "all")):
            await http.post("/v1/images/generations", json={"prompt": "x", "model": name})
            assert torchserve.predictions[-1][0] == archive


async def test_automatic1111s_clients_set_it_beforehand(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    options, generate = "/sdapi/v1/options", "/sdapi/v1/txt2img"
    async with client(torchserve, **bounded) as http:
        titles = [model["title"] for model in (await http.get("/sdapi/v1/sd-models")).json()]
        assert titles == ["main", "dream", "ink"]
        for name, archive in (("ink", "custom-ink"), ("Dream Shaper", "custom-dream"), ("main", "all")):
            assert (await http.post(options, json={"sd_model_checkpoint": name})).json() is None
            assert torchserve.workers[archive] == 1  # it is loaded when the answer comes
            assert (await http.get(options)).json()["sd_model_checkpoint"] == name
            answer = await http.post(generate, json={"prompt": "x"})
            assert answer.json()["images"] == [] and torchserve.predictions[-1][0] == archive
        torchserve.broken = {"custom-ink"}
        answer = await http.post(options, json={"sd_model_checkpoint": "ink"})
        assert answer.status_code == 503 and answer.json()["detail"].startswith("This model cannot be loaded")
        assert (await http.get(options)).json()["sd_model_checkpoint"] == "main"


async def test_a_bound_of_one_loses_no_request(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    async with client(torchserve, **bounded) as http, anyio.create_task_group() as tasks:
        done: list[str] = []

        async def ask(model: str) -> None:
            answer = await http.post("/txt2img", data={"prompt": "x", "model": model})
            assert answer.status_code == 200, answer.text
            done.append(model)

        torchserve.held["all"] = anyio.Event()
        tasks.start_soon(ask, "")
        with anyio.fail_after(HANG_S):
            while not torchserve.predictions:
                await anyio.sleep(0.01)
            for model in ("dream", "ink", "dream", "ink", ""):
                tasks.start_soon(ask, model)
            await anyio.sleep(0.1)
            torchserve.held["all"].set()
            while len(done) < 6:
                await anyio.sleep(0.01)
        assert torchserve.most == 1
        told = (await http.get("/models")).json()
        assert told["models"][0]["archive"] == "all"
        assert {model["name"]: model["state"] for model in told["available"]} == {"dream": "ready", "ink": "ready"}
        assert (await http.get("/ping")).status_code == 200


async def test_a_stream_says_that_its_model_is_loaded(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    async with client(torchserve, **bounded) as http:
        answer = await http.post("/custom/ink", data={"prompt": "x"}, headers={"accept": "text/event-stream"})
        assert answer.text.startswith('event: queued\ndata: {"place": 1, "loads": "ink"}\n\n')
        answer = await http.post("/custom/ink", data={"prompt": "x"}, headers={"accept": "text/event-stream"})
        assert "queued" not in answer.text


@pytest.mark.parametrize(("memory", "most"), [(9, 1), (10, 2), (12, 2), (13, 3)])
async def test_auto_counts_the_bytes_of_weights(
    torchserve: TorchServe, catalogue: Catalogue, bounded: dict[str, Any], memory: int, most: int
) -> None:
    catalogue.write(Contents(memory, 1, 4, (DREAM, INK)))  # with one byte beside each: 5 for the main one, 5 and 3
    async with client(torchserve, **bounded | {"max_models": "auto"}) as http:
        for model in ("ink", "dream", "", "ink") if memory != 9 else ("dream", ""):
            assert (await http.post("/txt2img", data={"prompt": "x", "model": model})).status_code == 200
        assert torchserve.most == most


async def test_the_reason_itself_is_told_and_others_go_on(
    torchserve: TorchServe, catalogue: Catalogue, bounded: dict[str, Any]
) -> None:
    broken = CatalogueEntry("broken", "broken", FAILED, "/models/broken has no weights in it.")
    catalogue.write(Contents(models=(DREAM, INK, broken)))
    torchserve.broken = {"custom-dream"}

    class Worker(TorchServe):
        def manage(self, request: httpx.Request, name: str) -> httpx.Response:
            if request.method == "POST":
                catalogue.tell_failure("custom-dream", "the GPU's memory is full.")
            return torchserve.manage(request, name)

        workers = property(lambda self: torchserve.workers, lambda self, value: None)  # type: ignore[assignment]

    async with client(Worker(), **bounded) as http:
        answer = await http.post("/custom/broken", data={"prompt": "x"})
        assert answer.json()["message"] == "This model cannot be loaded: /models/broken has no weights in it."
        assert torchserve.workers == {"all": 1}, "nothing had to leave for it"
        for _ in range(2):  # the second time at once: nothing makes room for it again
            answer = await http.post("/custom/dream", data={"prompt": "x"})
            assert answer.status_code == 503 and answer.headers["retry-after"] == "30"
            assert answer.json()["message"] == "This model cannot be loaded: the GPU's memory is full."
            assert (await http.post("/txt2img", data={"prompt": "x"})).status_code == 200
        assert torchserve.workers == {"all": 1}


async def test_one_that_is_being_prepared_is_waited_for(
    torchserve: TorchServe, catalogue: Catalogue, bounded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.loading.PREPARING_S", 1)
    late = CatalogueEntry("late", "late", PREPARING)
    catalogue.write(Contents(models=(late,)))
    async with client(torchserve, **bounded) as http:
        answer = await http.post("/custom/late", data={"prompt": "x"})
        assert answer.status_code == 503 and "still being prepared" in answer.json()["message"]
        monkeypatch.setattr("proxy.loading.PREPARING_S", 5)
        async with anyio.create_task_group() as tasks:

            async def ask() -> None:
                assert (await http.post("/custom/late", data={"prompt": "x"})).status_code == 200

            tasks.start_soon(ask)
            await anyio.sleep(0.1)
            catalogue.write(Contents(models=(CatalogueEntry("late", "late"),)))


async def test_tokens_are_counted_where_the_model_is_in_memory(torchserve: TorchServe, bounded: dict[str, Any]) -> None:
    async with client(torchserve, **bounded) as http:
        answer = await http.post("/tokens", data={"prompt": "a red apple"})
        assert answer.json() == {"status": "success", "prompt": [3], "negative_prompt": [0]}
        answer = await http.post("/tokens", data={"prompt": "x", "model": "ink"})
        assert answer.status_code == 503 and "custom-ink is not in memory" in answer.json()["message"]
        assert torchserve.workers == {"all": 1}
