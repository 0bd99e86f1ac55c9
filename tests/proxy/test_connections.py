"""What is not a request, or never becomes one, on a real socket."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from launch.machine import free_ports
from proxy import connections
from proxy.__main__ import configuration
from proxy.app import create_app
from proxy.settings import Settings
from tests.support.paths import HOME
from tests.support.torchserve import RESULT, serving

pytestmark = pytest.mark.anyio
HEAD = b"POST /txt2img HTTP/1.1\r\nHost: localhost\r\n"
HANGS_S = 30


@dataclass
class Listening:
    port: int
    app: Starlette
    predictions: list[httpx.Request]

    async def connect(self) -> Any:
        return await anyio.connect_tcp("127.0.0.1", self.port)

    def in_flight(self) -> float | None:
        """The requests that are being answered."""
        value: float | None = self.app.state.counts.registry.get_sample_value("sd_requests_in_flight")
        return value

    async def say(self, *parts: bytes) -> bytes:
        """All that comes back until the server closes."""
        async with await self.connect() as stream:
            for part in parts:
                await stream.send(part)
            return await everything(stream)


async def everything(stream: Any) -> bytes:
    received = b""
    with anyio.fail_after(HANGS_S), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            received += await stream.receive()
    return received


@asynccontextmanager
async def listening(result: bytes = RESULT) -> AsyncIterator[Listening]:
    predictions: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.port == 8080:
            predictions.append(request)
        return serving(result)(request)

    settings = Settings(port=free_ports(1)[0])
    app = create_app(settings, httpx.MockTransport(respond))
    server = uvicorn.Server(configuration(app, settings))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve)
        with anyio.fail_after(HANGS_S):
            while not server.started:
                await anyio.sleep(0.01)
        yield Listening(settings.port, app, predictions)
        server.should_exit = True
    assert app.state.bodies.bytes_in_flight == 0


def failures(answer: bytes, status: int) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.startswith(b"HTTP/1.1 %d " % status) and json.loads(body)["status"] == "failure"


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET  / HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: 8\r\nContent-Length: 9\r\n\r\nprompt=xx",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1_0\r\n\r\n",
        HEAD + b"Content-Length : 8\r\n\r\nprompt=x",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"X-Header: a\0b\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nprompt=x\r\n0\r\n\r\n",
        HEAD + b"".join(b"X-Header-%d: %s\r\n" % (i, b"x" * 1000) for i in range(600)) + b"\r\n",
        b"GET /" + b"x" * 600_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_no_request_gets_the_contracts_failure_and_goes_nowhere(said: bytes) -> None:
    async with listening() as server:
        assert failures(await server.say(said), 400)
    assert not server.predictions


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"xchunked", b"identity"])
async def test_a_transfer_coding_that_is_not_known_is_refused(coding: bytes) -> None:
    async with listening() as server:
        answer = await server.say(HEAD + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501")) and not server.predictions


async def test_two_lengths_of_one_body_are_refused_and_nothing_hides_in_it() -> None:
    hidden = b"POST /img2img HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\nprompt=x"
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with listening() as server:
        answer = await server.say(HEAD + both + hidden)
    assert failures(answer, 400) and b"not both" in answer and answer.count(b"HTTP/1.1 ") == 1
    assert not server.predictions


async def test_requests_that_come_in_one_piece_are_answered_in_their_order() -> None:
    async with listening() as server, await server.connect() as stream:
        await stream.send(2 * (HEAD + b"Content-Length: 8\r\n\r\nprompt=x") + b"GET /none HTTP/1.1\r\nHost: [::1]\r\n"
                          b"Connection: close\r\n\r\n")  # fmt: skip
        answer = await everything(stream)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"404"]
    assert len(server.predictions) == 2


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_a_head_that_never_ends_is_given_up(before: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    async with listening() as server, await server.connect() as stream, anyio.create_task_group() as tasks:
        if before:
            await stream.send(before)
            assert (await stream.receive()).startswith(b"HTTP/1.1 200")

        async def trickle() -> None:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                for byte in HEAD * 1000:
                    await stream.send(bytes([byte]))
                    await anyio.sleep(0.02)

        tasks.start_soon(trickle)
        answer = await everything(stream)
        tasks.cancel_scope.cancel()
    assert failures(answer, 408)


async def test_a_request_that_came_in_time_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.1)
    async with listening() as server, await server.connect() as stream:
        await stream.send(HEAD + b"Content-Length: 8\r\n\r\nprom")
        await anyio.sleep(0.3)
        await stream.send(b"pt=x")
        assert (await stream.receive()).startswith(b"HTTP/1.1 200")


async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.2)
    large = b'{"result": {"x": "%s"}}\n' % (b"x" * 50_000_000)
    async with listening(large) as server, await server.connect() as stream:
        await stream.send(HEAD + b"Content-Length: 8\r\n\r\nprompt=x")
        with anyio.fail_after(HANGS_S):
            while not server.predictions or server.in_flight():
                await anyio.sleep(0.01)


async def test_a_client_that_reads_slowly_gets_all_of_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 1.0)
    large = b'{"result": {"x": "%s"}}\n' % (b"x" * 30_000_000)
    async with listening(large) as server, await server.connect() as stream:
        await stream.send(HEAD + b"Content-Length: 8\r\n\r\nprompt=x")
        received = 0
        while received < 30_000_000:
            received += len(await stream.receive(1_000_000))
            await anyio.sleep(0.1)


async def test_a_client_that_sends_another_request_instead_of_reading_is_given_up_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.2)
    large = b'{"result": {"x": "%s"}}\n' % (b"x" * 50_000_000)
    async with listening(large) as server, await server.connect() as stream:
        await stream.send(HEAD + b"Content-Length: 8\r\n\r\nprompt=x")
        while not server.predictions:
            await anyio.sleep(0.01)
        await stream.send(HEAD + b"Content-Length: 8\r\n\r\nprompt=x")
        with anyio.fail_after(HANGS_S):
            while server.in_flight():
                await anyio.sleep(0.01)


async def test_a_body_that_nobody_wants_holds_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    async with listening() as server, await server.connect() as stream:
        await stream.send(b"GET /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert (await stream.receive()).startswith(b"HTTP/1.1 404")
        await stream.send(b"x")
        assert await everything(stream) == b""


async def test_a_whole_address_is_served() -> None:
    async with listening() as server:
        for target in (b"http://127.0.0.1:1337/ping", b"http://127.0.0.1:1337//ping/"):
            answer = await server.say(b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b'{"status":"success"}')


def test_haproxy_keeps_idle_connections_as_long_as_a_node() -> None:
    seconds = configuration(Starlette(), Settings()).timeout_keep_alive
    assert seconds >= 65
    assert f"timeout http-keep-alive {seconds}s\n" in (HOME / "deploy/haproxy/haproxy.cfg").read_text()


async def test_there_are_not_more_connections_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    async with listening() as server, await server.connect(), await server.connect():
        answer = await server.say(b"")
        assert failures(answer, 503) and b"Retry-After: 5" in answer
