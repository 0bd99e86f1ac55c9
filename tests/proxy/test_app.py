"""The proxy in front of a TorchServe that is played by a transport; the real one comes in the end-to-end tests."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from proxy.app import create_app
from proxy.settings import Settings
from tests.support.torchserve import RESULT, Respond, client, management, serving

pytestmark = pytest.mark.anyio


async def test_the_result_goes_to_the_client_as_it_is() -> None:
    progress = b'{"progress": {"step": 1, "of": 2}}\n'
    async with client(serving(b"\n", progress[:10], progress[10:], b"\n" + RESULT[:20], RESULT[20:])) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert answer.content == b'{"status": "success", "images": []}'


async def test_the_body_goes_through_unchanged_with_its_type_in_a_header() -> None:
    seen: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return serving(RESULT)(request)

    async with client(respond, deadline_s=60.0) as http:
        await http.post(
            "/img2img", content=b"prompt=%zz", headers={"Content-Type": "text/odd", "X-Request-Id": "request-1"}
        )
    request = seen[-1]
    assert (request.url.path, request.content) == ("/predictions/img2img", b"prompt=%zz")
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["x-form-type"] == "text/odd"
    assert request.headers["x-task"] == "img2img"
    assert request.headers["x-request-id"] == "request-1"
    assert float(request.headers["x-deadline"]) > 1e9


@pytest.mark.parametrize("sent", ["größe".encode(), b"a\x01<script>", b"x" * 129, b""])
async def test_an_id_that_is_none_is_replaced(sent: bytes) -> None:
    async with client(serving(RESULT)) as http:
        answer = await http.get("/healthz", headers={"X-Request-Id": sent})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_events_for_a_client_that_asks_for_them() -> None:
    lines = b'{"progress": {"step": 1, "of": 2}}\n\n{"progress": {"step": 2, "of": 2, "preview": "QUJD"}}\n'
    async with client(serving(lines, RESULT)) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers={"Accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text == (
        'event: progress\ndata: {"step": 1, "of": 2}\n\n'
        'event: progress\ndata: {"step": 2, "of": 2, "preview": "QUJD"}\n\n'
        'event: result\ndata: {"status": "success", "images": []}\n\n'
    )


async def test_a_failure_before_the_first_event_has_its_status_and_a_later_one_is_an_event() -> None:
    error = b'{"error": {"status": 507, "message": "no room"}}\n'
    events = {"Accept": "text/event-stream"}
    async with client(serving(error)) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=events)
        assert answer.status_code == 507 and answer.json() == {"status": "failure", "message": "no room"}
    async with client(serving(b'{"progress": {"step": 1, "of": 2}}\n', error)) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=events)
        assert answer.status_code == 200
        assert answer.text.endswith('event: error\ndata: {"status": "failure", "message": "no room"}\n\n')


@pytest.mark.parametrize(
    ("respond", "status", "sentence"),
    [
        (serving(b'{"error": {"status": 400, "message": "seed must be"}}\n'), 400, "seed must be"),
        (serving(status=503), 503, "busy: too many requests"),
        (serving(status=503, worker="LOADING"), 503, "cannot serve yet: the model is loading"),
        (serving(status=404), 503, "not registered"),
        (serving(b'{"code": 507, "message": "Worker died."}', status=507), 503, "worker stopped before"),
        (serving(b'{"code": 500, "message": "x"}\n'), 503, "worker stopped before"),
        (serving(b'{"progress": {"step": 1, "of": 2}}\n'), 503, "worker stopped before"),
    ],
)
async def test_each_failure_of_torchserve_becomes_a_sentence(respond: Respond, status: int, sentence: str) -> None:
    async with client(respond) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == status
    assert answer.json()["status"] == "failure" and sentence in answer.json()["message"]
    assert ("retry-after" in answer.headers) is (status == 503)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (httpx.ConnectError("no"), "starting or has stopped"),
        (httpx.ReadError("cut"), "worker stopped before"),
    ],
)
async def test_a_broken_connection_becomes_a_sentence(error: Exception, sentence: str) -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.port == 8080:
            raise error
        return management(request)

    async with client(respond) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == 503 and sentence in answer.json()["message"]


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
        (lambda request: httpx.Response(200, text="<html>"), 503, "does not answer as it should"),
    ],
)
async def test_ping_is_true_readiness(respond: Respond, status: int, sentence: str | None) -> None:
    async with client(respond) as http:
        answer = await http.get("/ping")
    assert answer.status_code == status
    assert answer.json() == {"status": "success"} if sentence is None else sentence in answer.json()["message"]


async def test_ping_while_torchserve_is_down() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with client(respond) as http:
        answer = await http.get("/ping")
        assert answer.status_code == 503 and "TorchServe is starting" in answer.json()["message"]
        assert (await http.get("/models")).status_code == 503


async def test_models_describes_each_archive_once() -> None:
    two = b'{"result": {"models": [{"model": "m"}, {"model": "inpainting"}]}}\n'
    combined = ",".join(f"{task}=stable-diffusion" for task in ("txt2img", "img2img", "masking"))
    async with client(serving(two), archives=combined) as http:
        assert (await http.get("/models")).json()["models"] == [
            {"archive": "stable-diffusion", "model": "m"},
            {"archive": "stable-diffusion", "model": "inpainting"},
        ]
    async with client(serving(b'{"result": {"models": [{"model": "m"}]}}\n')) as http:
        assert len((await http.get("/models")).json()["models"]) == 3


async def test_a_body_over_the_limit_is_413_whether_it_says_its_length_or_not() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 100

    async with client(serving(RESULT), max_body_bytes=1000) as http:
        assert (await http.post("/txt2img", content=b"x" * 1001)).status_code == 413
        answer = await http.post("/txt2img", content=chunks())
        assert answer.status_code == 413 and "larger than 1000 bytes" in answer.json()["message"]
        assert (await http.post("/txt2img", content=b"x" * 1000)).status_code == 200


async def test_bytes_in_flight_are_bounded_together() -> None:
    release = anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await release.wait()
        yield RESULT

    def respond(request: httpx.Request) -> httpx.Response:
        return management(request) if request.url.port == 8081 else httpx.Response(200, content=slow())

    statuses: list[tuple[str, int]] = []
    async with client(respond, max_bytes_in_flight=2500, api_key="a,b,c") as http:

        async def post(key: str) -> None:
            headers = {"X-API-Key": key}
            statuses.append((key, (await http.post("/txt2img", content=b"x" * 1000, headers=headers)).status_code))
            if len(statuses) == 2:
                release.set()

        async with anyio.create_task_group() as tasks:
            for key in ("a", "a", "b", "c"):
                tasks.start_soon(post, key)
        # half of it is for one client
        assert sorted(statuses) == [("a", 200), ("a", 429), ("b", 200), ("c", 503)]
        await post("c")
        assert statuses[-1] == ("c", 200)


async def test_a_deadline_is_a_504_though_the_worker_says_nothing() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    def respond(request: httpx.Request) -> httpx.Response:
        return management(request) if request.url.port == 8081 else httpx.Response(200, content=silent())

    async with client(respond, deadline_s=0.05) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == 504 and "not done within" in answer.json()["message"]


async def test_a_client_that_leaves_closes_the_connection_to_torchserve() -> None:
    began, closed = anyio.Event(), anyio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            began.set()
            yield b'{"progress": {"step": 1, "of": 2}}\n'
            await anyio.sleep_forever()
        finally:
            closed.set()

    def respond(request: httpx.Request) -> httpx.Response:
        return management(request) if request.url.port == 8081 else httpx.Response(200, content=endless())

    app = create_app(Settings(), httpx.MockTransport(respond))
    messages = [{"type": "http.request", "body": b"prompt=x", "more_body": False}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, Any]:
        if len(messages) == 1:
            await began.wait()
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to read")

    scope = {"type": "http", "method": "POST", "path": "/txt2img", "query_string": b"", "headers": [], "app": app}
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
        with anyio.fail_after(5):
            await closed.wait()
    assert app.state.bodies.bytes_in_flight == 0


@pytest.mark.parametrize(
    ("method", "path", "status", "sentence"),
    [
        ("GET", "/nope", 404, "There is no /nope here: /docs lists"),
        ("GET", "/txt2img", 405, "/txt2img takes POST, not GET."),
        ("POST", "/ping", 405, "/ping takes GET, not POST."),
        ("POST", "/txt2img/x", 404, "There is no /txt2img/x here"),
    ],
)
async def test_unknown_paths_and_methods_fail_in_the_contracts_form(
    method: str, path: str, status: int, sentence: str
) -> None:
    async with client(management) as http:
        answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["status"] == "failure" and sentence in answer.json()["message"]


async def test_failures_as_200_on_the_originals_paths_alone() -> None:
    async with client(serving(status=500), failures_as_200=True, max_body_bytes=10) as http:
        for answer in [
            await http.post("/txt2img", content=b"x"),
            await http.post("/masking", content=b"x" * 11),
            await http.get("/img2img"),
        ]:
            assert answer.status_code == 200 and answer.json()["status"] == "failure"
        assert (await http.get("/models")).status_code == 503
        assert (await http.get("/nope")).status_code == 404


async def test_a_fault_of_ours_is_still_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("secret detail")

    async with client(serving(RESULT)) as http:
        monkeypatch.setattr("proxy.routes.Generated", broken)
        answer = await http.post("/txt2img", content=b"x")
    assert answer.status_code == 500 and "secret" not in json.dumps(answer.json())
    assert answer.json()["status"] == "failure" and answer.headers["x-request-id"]


async def test_a_body_that_stalls_is_given_up_and_holds_no_room_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.bodies.STALL_S", 0.05)
    app = create_app(Settings(), httpx.MockTransport(serving(RESULT)))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        assert app.state.bodies.bytes_in_flight == 0
        await anyio.sleep_forever()
        return {}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/txt2img", "query_string": b"", "app": app,
        "headers": [(b"content-length", b"60000000")],
    }  # fmt: skip
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    assert sent[0]["status"] == 408 and b"Nothing came" in sent[1]["body"]


async def test_a_request_does_not_wait_for_ever_for_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.WATCH_S", 0.01)
    monkeypatch.setattr("proxy.upstream.PATIENCE_S", 0.1)
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

    async with client(respond) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
        assert answer.status_code == 503 and "the model is loading" in answer.json()["message"]
        assert int(answer.headers["retry-after"]) > 0
        with anyio.fail_after(5):
            await given_up.wait()
