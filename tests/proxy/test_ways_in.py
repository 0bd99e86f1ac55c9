"""The three ways in (native, OpenAI, and jobs) share keys, limits, turns and the end of the server."""

from functools import partial
from typing import Any
from urllib.parse import unquote

import anyio
import httpx
import pytest

from handlers.wire import Progress
from proxy.admission import Admission
from proxy.shutdown import Drain
from tests.support.dialects import DATA, FILE, Held, result
from tests.support.torchserve import client, serving

pytestmark = pytest.mark.anyio

NATIVE, OPENAI, JOBS = "/txt2img", "/v1/images/generations", "/v1/jobs?kind=txt2img"
ASYNC = {"Prefer": "respond-async"}
WAYS = [(NATIVE, {}), (OPENAI, {}), (JOBS, {}), (NATIVE, ASYNC), (OPENAI, ASYNC)]
every_way = pytest.mark.parametrize(("path", "headers"), WAYS)


def message(answer: httpx.Response) -> str:
    """The sentence of a failure in either form."""
    body = answer.json()
    sentence: str = body["error"]["message"] if "error" in body else body["message"]
    return sentence


async def post(http: httpx.AsyncClient, path: str, headers: dict[str, str], **more: str) -> httpx.Response:
    return await http.post(path, json={"prompt": "x"}, headers=headers | more)


async def everything_ended(http: httpx.AsyncClient) -> None:
    """Until nothing is in flight."""
    drain: Drain = http._transport.app.state.drain  # type: ignore[attr-defined]
    with anyio.fail_after(30):
        while drain.in_flight:
            await anyio.sleep(0.01)


@every_way
async def test_a_key_opens_each(path: str, headers: dict[str, str]) -> None:
    async with client(serving(result()), api_key="secret") as http:
        assert (await post(http, path, headers)).status_code == 401
        assert (await post(http, path, headers, authorization="Bearer secret")).is_success
        assert (await post(http, "/k/secret" + path, headers)).is_success
        assert (await post(http, path, headers, origin="http://evil.example", authorization="Bearer secret")).is_error
        await everything_ended(http)


@every_way
@pytest.mark.parametrize("first", [NATIVE, OPENAI, JOBS])
async def test_a_clients_limit_counts_all_of_them(first: str, path: str, headers: dict[str, str]) -> None:
    served = Held()
    async with client(served, max_per_client=1) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(post, http, first, {}))
        await anyio.wait_all_tasks_blocked()
        answer = await post(http, path, headers)
        assert answer.status_code == 429 and "1 open requests, the limit per client" in message(answer)
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers.get("x-should-retry") == (None if path == NATIVE else "true")
        served.go.set()
        await everything_ended(http)


@every_way
async def test_a_full_queue_refuses_each(path: str, headers: dict[str, str]) -> None:
    served = Held()
    async with client(served, max_open=1, max_waiting=1) as http, anyio.create_task_group() as tasks:
        for one in (NATIVE, OPENAI):
            tasks.start_soon(partial(post, http, one, {}))
            await anyio.wait_all_tasks_blocked()
        answer = await post(http, path, headers)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0
        served.go.set()
        await everything_ended(http)


@every_way
async def test_each_waits_for_its_turn(path: str, headers: dict[str, str]) -> None:
    served = Held()
    async with client(served, max_open=1) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(post, http, NATIVE, {}))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(partial(post, http, path, headers))
        await anyio.wait_all_tasks_blocked()
        assert "sd_requests_waiting 1.0" in (await http.get("/metrics")).text
        served.go.set()
        await everything_ended(http)


@every_way
async def test_a_body_has_its_limit_in_each(path: str, headers: dict[str, str]) -> None:
    async with client(serving(result()), max_body_bytes=99) as http:
        answer = await http.post(path, content=b"x" * 100, headers=headers)
        assert answer.status_code == 413 and "larger than 99 bytes" in message(answer)


@every_way
async def test_an_ending_server_finishes_each_and_begins_none(
    path: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.jobs.LINGER_S", 0.1)
    served = Held()
    async with client(served) as http, anyio.create_task_group() as tasks:
        answers: list[Any] = []

        async def ask() -> None:
            answers.append(await post(http, path, headers))

        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        drain: Drain = http._transport.app.state.drain  # type: ignore[attr-defined]
        assert drain.in_flight == 1
        drain.begun = True
        answer = await post(http, path, headers)
        assert answer.status_code == 503 and "being shut down" in message(answer)
        served.go.set()
        await everything_ended(http)
    assert answers[0].is_success


async def test_all_of_them_are_in_one_queue() -> None:
    served = Held()
    async with client(served) as http, anyio.create_task_group() as tasks:
        for path, headers in WAYS:
            tasks.start_soon(partial(post, http, path, headers))
        await anyio.wait_all_tasks_blocked()
        admission: Admission = http._transport.app.state.admission  # type: ignore[attr-defined]
        (queue,) = admission._queues.values()
        assert len(queue._open) == len(WAYS)
        served.go.set()
        await everything_ended(http)


@pytest.mark.parametrize(("path", "headers"), [(JOBS, {}), (NATIVE, ASYNC)])
@pytest.mark.parametrize("prefix", ["/k/secret", "/k/a%3Ab%3F", ""])
async def test_the_addresses_of_a_job_have_the_key_that_came_in_the_address(
    path: str, headers: dict[str, str], prefix: str
) -> None:
    served = Held(Progress(1, 2, DATA).line())
    async with client(served, api_key="secret,a:b?" if prefix else "") as http:
        answer = await post(http, prefix + path, headers)
        where = answer.headers["location"]
        assert where == f"{prefix}/v1/jobs/{answer.json()['id']}"
        with anyio.fail_after(30):
            while not (preview := (await http.get(where)).json()["preview_url"]):
                await anyio.sleep(0.01)
        assert preview.startswith(where) and (await http.get(preview)).content == FILE
        served.go.set()
        with anyio.fail_after(30):
            while not (images := (await http.get(where)).json()["images"]):
                await anyio.sleep(0.01)
        assert images[0]["url"] == f"{where}/images/0" and (await http.get(images[0]["url"])).content == FILE
        if prefix:  # whoever sends the key in a header gets addresses without it
            plain = await http.get(where.removeprefix(prefix), headers={"X-API-Key": unquote(prefix[3:])})
            assert plain.json()["images"][0]["url"].startswith("/v1/jobs/")
