"""Bad lines between client, proxy and TorchServe: nothing hangs, nothing leaks, and nothing passes as it came."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import anyio
import httpx
import psutil
import pytest
import uvicorn
from starlette.applications import Starlette

from handlers.wire import Progress
from launch.machine import free_ports
from proxy import bodies, connections, upstream
from proxy.__main__ import configuration
from proxy.app import create_app
from proxy.settings import Settings
from tests.support.lines import FINE, Fault, Line, line_to
from tests.support.torchserve import RESULT

pytestmark = pytest.mark.anyio
HANGS_S = 60
LARGE = b"x" * 300_000
READY = json.dumps([{"modelName": "x", "workers": [{"status": "READY"}]}]).encode()
FAULTS = {
    "late": Fault(late_s=0.05),
    "narrow": Fault(bytes_per_s=1_000_000),
    "in pieces": Fault(piece=997),
    "reset at once": Fault(resets_after=0),
    "reset in the middle": Fault(resets_after=150),
    "half open": Fault(stalls_after=0),
    "half open in the middle": Fault(stalls_after=150),
    "closed late": Fault(closes_late_s=0.3),
}
SLOW = ("late", "narrow", "in pieces", "closed late")  # where everything arrives


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((bodies, "STALL_S"), (connections, "HEAD_S"), (connections, "READ_S"), (upstream, "WATCH_S")):
        monkeypatch.setattr(module, name, 0.5)


async def torchserve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request of a connection: its worker is ready, and predictions are a step and a result."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if length := re.search(rb"(?i)content-length: (\d+)", head):
                await reader.readexactly(int(length[1]))
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for line in (READY,) if head.startswith(b"GET") else (Progress(1, 1).line(), RESULT):
                writer.write(b"%x\r\n%s\r\n" % (len(line), line))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        writer.transport.abort()


@dataclass
class Lines:
    """A proxy between two lines."""

    app: Starlette
    to_proxy: Line
    to_torchserve: Line

    async def ask(self, accept: str = "", body: bytes = b"") -> int:
        """The status; 0 for a connection that broke."""
        files = {"prompt": (None, "x"), "init_image": body} if body else {"prompt": (None, "x")}
        async with httpx.AsyncClient(timeout=HANGS_S) as http:
            try:
                url = f"http://127.0.0.1:{self.to_proxy.port}/txt2img"
                answer = await http.post(url, files=files, headers={"Accept": accept})
            except httpx.TransportError:
                return 0
        if answer.headers["content-type"].startswith("text/event-stream"):
            (last,) = re.findall(r"event: (?:result|error)\ndata: (.*)\n\n$", answer.text)
            said = json.loads(last)
            return int(said.get("code", 200))
        assert answer.json()["status"] == ("success" if answer.status_code == 200 else "failure")
        return answer.status_code

    async def say(self, said: bytes) -> bytes:
        """What the proxy answers to these bytes, until it closes."""
        async with await anyio.connect_tcp("127.0.0.1", self.to_proxy.port) as stream:
            await stream.send(said)
            received = b""
            with anyio.move_on_after(5):
                try:
                    while True:
                        received += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
            return received

    def is_idle(self) -> bool:
        state = self.app.state
        in_flight = state.counts.registry.get_sample_value("sd_requests_in_flight")
        queues = state.admission._queues.values()
        return not (in_flight or state.bodies.bytes_in_flight or any(one._open or one._waiting for one in queues))


@asynccontextmanager
async def lines(to_proxy: tuple[Fault, Fault] = (FINE, FINE), beyond: tuple[Fault, Fault] = (FINE, FINE)
                ) -> AsyncIterator[Lines]:  # fmt: skip
    process = psutil.Process()
    tasks_before, files_before = len(asyncio.all_tasks()), process.num_fds()
    async with AsyncExitStack() as stack:
        played = await stack.enter_async_context(await asyncio.start_server(torchserve, "127.0.0.1", 0))
        far = await stack.enter_async_context(line_to(played.sockets[0].getsockname()[1]))
        url = f"http://127.0.0.1:{far.port}"
        settings = Settings(port=free_ports(1)[0], inference_url=url, management_url=url, deadline_s=1, restart_s=1)
        app = create_app(settings)
        server = uvicorn.Server(configuration(app, settings))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve)
            with anyio.fail_after(HANGS_S):
                while not server.started:
                    await anyio.sleep(0.01)
            far.sending, far.receiving = beyond
            await far.close()  # the proxy makes new ones
            async with line_to(settings.port, *to_proxy) as near:
                there = Lines(app, near, far)
                yield there
                with anyio.fail_after(HANGS_S):
                    while not there.is_idle():
                        await anyio.sleep(0.01)
            server.should_exit = True
    with anyio.fail_after(HANGS_S):
        while len(asyncio.all_tasks()) > tasks_before or process.num_fds() > files_before:
            await anyio.sleep(0.01)


async def all_kinds(there: Lines) -> list[int]:
    """The statuses of a plain request, of a stream and of one with a large body, all at once."""
    statuses: list[int] = []

    async def one(accept: str, body: bytes) -> None:
        statuses.append(await there.ask(accept, body))

    with anyio.fail_after(HANGS_S):
        async with anyio.create_task_group() as tasks:
            for accept, body in (("", b""), ("text/event-stream", b""), ("", LARGE)):
                tasks.start_soon(one, accept, body)
    return statuses


@pytest.mark.parametrize("direction", ["sent", "received"])
@pytest.mark.parametrize("name", FAULTS)
async def test_between_proxy_and_torchserve(name: str, direction: str) -> None:
    faults = (FAULTS[name], FINE) if direction == "sent" else (FINE, FAULTS[name])
    async with lines(beyond=faults) as there:
        statuses = await all_kinds(there)
    assert {*statuses} <= ({200} if name in SLOW else {200, 500, 503, 504}), statuses


@pytest.mark.parametrize("direction", ["sent", "received"])
@pytest.mark.parametrize("name", FAULTS)
async def test_between_client_and_proxy(name: str, direction: str) -> None:
    faults = (FAULTS[name], FINE) if direction == "sent" else (FINE, FAULTS[name])
    async with lines(to_proxy=faults) as there:
        with anyio.move_on_after(2 if name.startswith("half open") else HANGS_S):  # its client gives up
            statuses = await all_kinds(there)
            assert {*statuses} <= ({200} if name in SLOW else {0, 200, 400, 408}), statuses


HEAD = b"POST /txt2img HTTP/1.1\r\nHost: localhost\r\n"
LENGTH = b"Content-Length: 8\r\nConnection: close\r\n\r\nprompt=x"


@pytest.mark.parametrize(
    "said",
    [
        b"POST /txt2img HTTP/1.0\r\n" + LENGTH,
        b"POST /txt2img HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nprompt=x\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 8\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nprompt=x\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n" + LENGTH,
        HEAD + b"Transfer-Encoding: \x0bchunked\r\n" + LENGTH,
        HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n8\r\nprompt=x\r\n0\r\n\r\n",
        b"\0" + HEAD + LENGTH,
        b"\0\r\n" + HEAD + LENGTH,
        b"\r\n\r\n" + HEAD + LENGTH,
        HEAD + b"X-Task: describe\r\nX-Deadline: 1\r\nX-Form-Type: a/b\r\nX-Own: marked\r\n" + LENGTH,
        HEAD + b"Content-Type: a/b\rX-Task: describe\r\n" + LENGTH,
        HEAD + b"Content-Type: a/b\r\n X-Task: describe\r\n" + LENGTH,
        HEAD + b"X-Request-Id: marked\tContent-Length: 0\r\n" + LENGTH,
        HEAD + b"Expect: 100-continue\r\n" + LENGTH,
        HEAD + b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + LENGTH,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_torchserve_gets_requests_that_the_proxy_wrote_and_no_other(said: bytes) -> None:
    async with lines() as there:
        assert (await there.say(said)).startswith(b"HTTP/1.1 ")
        sent = bytes(there.to_torchserve.sent)
    names = {b"host", b"accept", b"accept-encoding", b"connection", b"user-agent", b"content-type", b"content-length",
             b"x-task", b"x-form-type", b"x-request-id", b"x-deadline"}  # fmt: skip
    assert b"marked" not in sent
    while sent:
        head, _, sent = sent.partition(b"\r\n\r\n")
        line, *headers = head.split(b"\r\n")
        assert re.fullmatch(rb"GET /models/\w+ HTTP/1\.1|POST /predictions/txt2img HTTP/1\.1", line)
        fields = [tuple(header.split(b": ", 1)) for header in headers]
        assert len({name.lower() for name, _ in fields}) == len(fields)
        assert {name.lower() for name, _ in fields} <= names
        assert not any(sign in head.replace(b"\r\n", b"") for sign in (b"\0", b"\r", b"\n"))
        told = {name.lower(): value for name, value in fields}
        if line.startswith(b"POST"):
            assert told[b"x-task"] == b"txt2img" and float(told[b"x-deadline"]) > 1
            length = int(told[b"content-length"])
            assert sent[:length] == b"prompt=x"
            sent = sent[length:]
