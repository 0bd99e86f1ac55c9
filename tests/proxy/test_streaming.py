"""Which answers are events, and what a stream says while there is nothing to say."""

import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from handlers.wire import Progress, Result
from proxy import streaming
from proxy.admission import Queued
from proxy.shutdown import Drain
from proxy.streaming import Generated, NativeAnswer, wants_events
from tests.support.torchserve import RESULT, client, serving

HANGS_S = 30


@pytest.mark.parametrize(
    ("accept", "events"),
    [
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.5", True),
        ("text/event-stream; q=0.001", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream ; Q=0.000, application/json", False),
    ],
)
def test_a_client_gets_events_if_it_accepts_them(accept: str, events: bool) -> None:
    assert wants_events(accept) is events


@pytest.mark.anyio
async def test_a_client_that_refuses_events_gets_one_json_body() -> None:
    lines = b'{"progress": {"step": 1, "of": 1}}\n'
    async with client(serving(lines, RESULT)) as http:
        headers = {"Accept": "application/json, text/event-stream;q=0"}
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=headers)
    assert answer.headers["content-type"] == "application/json" and answer.json()["status"] == "success"


class Reader:
    """A client of `Generated`: what was sent to it, and an event for each part."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self._more = anyio.Event()

    async def receive(self) -> dict[str, Any]:
        await anyio.sleep_forever()
        return {}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self._more.set()

    async def until(self, text: bytes) -> None:
        """Waits until the answer contains `text`."""
        with anyio.fail_after(HANGS_S):
            while text not in self.body:
                await self._more.wait()
                self._more = anyio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def events(result: anyio.Event) -> AsyncGenerator[Queued | Progress | Result, None]:
    yield Queued(2)
    yield Queued(1)
    await result.wait()
    yield Progress(1, 1)
    yield Result(b"{}")


def generated(result: anyio.Event, as_events: bool) -> Generated:
    return Generated(events(result), NativeAnswer(as_events, always_200=False), Drain(), math.inf)


@pytest.mark.anyio
async def test_a_streams_head_comes_at_once_and_comments_break_the_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "COMMENT_S", 0.01)
    reader, result = Reader(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(generated(result, True), {"type": "http"}, reader.receive, reader.send)
        await reader.until(b": still here\n\n: still here\n\n")
        assert reader.sent[0]["status"] == 200
        result.set()
    said = reader.body.replace(b": still here\n\n", b"").decode()
    assert said == (
        'event: queued\ndata: {"place": 2}\n\nevent: queued\ndata: {"place": 1}\n\n'
        'event: progress\ndata: {"step": 1, "of": 1}\n\nevent: result\ndata: {}\n\n'
    )
    assert not reader.sent[-1].get("more_body")


@pytest.mark.anyio
async def test_an_error_event_says_when_to_try_again() -> None:
    async with client(serving(status=404)) as http:  # TorchServe has no such archive
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers={"Accept": "text/event-stream"})
    event = json.loads(answer.text.partition("event: error\ndata: ")[2])
    assert (event["status"], event["code"], event["retry_after"]) == ("failure", 503, 30)


@pytest.mark.anyio
async def test_a_json_answer_says_nothing_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "COMMENT_S", 0.01)
    reader, result = Reader(), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(generated(result, False), {"type": "http"}, reader.receive, reader.send)
        await anyio.wait_all_tasks_blocked()
        assert not reader.sent
        result.set()
    assert reader.body == b"{}"
