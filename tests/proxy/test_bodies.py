"""Bodies within their limits: one alone, all together, and one that stalls."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from proxy.app import create_app
from proxy.settings import Settings
from tests.support.torchserve import RESULT, client, management, serving

pytestmark = pytest.mark.anyio


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
    assert sent[0]["status"] == 408 and b"The body paused" in sent[1]["body"]
