"""TorchServe as the proxy sees it: its failures, its readiness, and a worker that does not come."""

import anyio
import httpx
import pytest

from proxy.upstream import Upstream
from tests.support.torchserve import Respond, client, management, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("respond", "status", "sentence"),
    [
        (serving(b'{"error": {"status": 400, "message": "seed must be"}}\n'), 400, "seed must be"),
        (serving(status=503), 503, "busy: too many requests"),
        (serving(status=503, worker="LOADING"), 503, "cannot serve yet: the model is loading"),
        (serving(status=404), 503, "not registered"),
    ],
)
async def test_each_failure_of_torchserve_becomes_a_sentence(respond: Respond, status: int, sentence: str) -> None:
    async with client(respond) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == status
    assert answer.json()["status"] == "failure" and sentence in answer.json()["message"]
    assert ("retry-after" in answer.headers) is (status == 503)


@pytest.mark.parametrize(
    ("respond", "status", "sentence"),
    [
        (management, 200, None),
        (
            lambda request: management(request, "LOADING"),
            503,
            "starting: txt2img, img2img, masking (the model is loading)",
        ),
        (lambda request: httpx.Response(404), 503, "the archive img2img is not registered"),
        (lambda request: httpx.Response(200, json=[{"workers": []}]), 503, "no worker"),
        (lambda request: httpx.Response(200, text="<html>"), 503, "gives an unexpected answer"),
    ],
)
async def test_ping_is_true_readiness(respond: Respond, status: int, sentence: str | None) -> None:
    async with client(respond) as http:
        answer = await http.get("/ping")
    assert answer.status_code == status
    assert answer.json() == {"status": "success"} if sentence is None else sentence in answer.json()["message"]


async def test_while_torchserve_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.WATCH_S", 0.01)

    def respond(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with client(respond, restart_s=0.1) as http:
        for answer in (await http.get("/ping"), await http.get("/models"), await http.post("/txt2img")):
            assert answer.status_code == 503 and "TorchServe is starting" in answer.json()["message"]


async def test_models_describes_each_archive_once() -> None:
    two = b'{"result": {"models": [{"model": "m"}, {"model": "inpainting"}]}}\n'
    combined = ",".join(f"{task}=stable-diffusion" for task in ("txt2img", "img2img", "masking"))
    async with client(serving(two), archives=combined) as http:
        assert (await http.get("/models")).json()["models"] == [
            {"archive": "stable-diffusion", "model": "m", "loaded": True},
            {"archive": "stable-diffusion", "model": "inpainting", "loaded": True},
        ]
    async with client(serving(b'{"result": {"models": [{"model": "m"}]}}\n')) as http:
        assert len((await http.get("/models")).json()["models"]) == 3


async def test_a_request_does_not_wait_for_ever_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.WATCH_S", 0.01)
    worker, given_up = "READY", anyio.Event()

    async def respond(request: httpx.Request) -> httpx.Response:
        nonlocal worker
        if request.url.port == 8081:
            return management(request, worker)
        await anyio.sleep(0.3)  # longer than its patience, but there is a worker
        worker = "LOADING"
        try:
            await anyio.sleep_forever()
        finally:
            given_up.set()

    async with client(respond, restart_s=0.1) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
        assert answer.status_code == 503 and "the model is loading" in answer.json()["message"]
        assert int(answer.headers["retry-after"]) > 0
        with anyio.fail_after(5):
            await given_up.wait()


class Pages:
    """A management API that lists three archives on two pages, of which one has no worker."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, list[dict[str, str]]()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/models":
            workers = [] if request.url.path.endswith("/b") else [{"status": "UNLOADING"}]
            return httpx.Response(200, json=[{"workers": workers}])
        self.asked.append(dict(request.url.params))
        if "next_page_token" not in request.url.params:
            models = [{"modelName": "a"}, {"modelName": "b"}]
            return httpx.Response(200, json={"nextPageToken": "2", "models": models})
        if self.error:
            raise self.error
        return httpx.Response(200, json={"models": [{"modelName": "c"}]})


@pytest.mark.parametrize(
    ("error", "loaded"),
    [
        (None, ["a", "c"]),
        (httpx.ConnectError("died, with all that it had"), []),
        (httpx.ReadTimeout("busy, with all that it has"), None),
        (httpx.ReadError("cut"), None),
    ],
)
async def test_what_is_in_memory_is_read_page_by_page(error: Exception | None, loaded: list[str] | None) -> None:
    pages = Pages(error)
    upstream = Upstream("http://x:8080", "http://x:8081", "http://x:8082", {}, httpx.MockTransport(pages))
    assert await upstream.loaded() == loaded
    assert pages.asked == [{"limit": "100"}, {"limit": "100", "next_page_token": "2"}]
    await upstream.aclose()
