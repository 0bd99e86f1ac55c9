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
from tests.support.torchserve import RESULT, client, management, serving

pytestmark = pytest.mark.anyio


async def test_the_result_goes_to_the_client_as_it_is() -> None:
    progress = b'{"progress": {"step": 1, "of": 2}}\n'
    async with client(serving(b"\n", progress[:10], progress[10:], b"\n" + RESULT[:20], RESULT[20:])) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    assert answer.content == b'{"status": "success", "images": []}'


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_warnings_reach_the_client(accept: str) -> None:
    result = b'{"status": "success", "images": [], "warnings": ["The mask is black."]}'
    async with client(serving(b'{"result": ' + result + b"}\n")) as http:
        answer = await http.post("/masking", data={"prompt": "x"}, headers={"Accept": accept})
    assert result in answer.content


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


async def test_a_failure_after_a_streams_head_is_an_event_and_one_before_has_its_status() -> None:
    error = b'{"error": {"status": 507, "message": "no room"}}\n'
    events = {"Accept": "text/event-stream"}
    for lines in ((error,), (b'{"progress": {"step": 1, "of": 2}}\n', error)):
        async with client(serving(*lines)) as http:
            answer = await http.post("/txt2img", data={"prompt": "x"}, headers=events)
            assert answer.status_code == 200
            event = '{"status": "failure", "message": "no room", "code": 507}'
            assert answer.text.endswith(f"event: error\ndata: {event}\n\n")
    async with client(serving(RESULT), max_body_bytes=3) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=events)
        assert answer.status_code == 413 and answer.json()["status"] == "failure"


async def test_a_deadline_is_a_504_though_the_worker_says_nothing() -> None:
    async def silent() -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    def respond(request: httpx.Request) -> httpx.Response:
        return management(request) if request.url.port == 8081 else httpx.Response(200, content=silent())

    async with client(respond, deadline_s=0.05) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == 504 and "not finished within" in answer.json()["message"]


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


@pytest.mark.parametrize("path", ["/tokens", "/sdapi/v1/options", "/txt2img"])
async def test_a_client_that_leaves_while_it_sends_is_no_fault(path: str, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(), httpx.MockTransport(serving(RESULT)))
    messages = [{"type": "http.request", "body": b"prompt=", "more_body": True}, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "app": app}
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)  # a fault would be raised here, too, for the server to log
    assert sent[0]["status"] == 499 and not any(record.exc_info for record in caplog.records)
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
        monkeypatch.setattr("proxy.generating.Generated", broken)
        answer = await http.post("/txt2img", content=b"x")
    assert answer.status_code == 500 and "secret" not in json.dumps(answer.json())
    assert answer.json()["status"] == "failure" and answer.headers["x-request-id"]
