"""Requests whose worker or TorchServe dies, in front of a TorchServe that is played by a transport."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import httpx
import pytest

from handlers.wire import Progress, Result
from proxy import restarts
from proxy.admission import Queued
from proxy.dialects.forms import read_fields
from proxy.frontend_failures import WorkerDied
from tests.support.running import HANG_S
from tests.support.torchserve import client, management, serving

pytestmark = pytest.mark.anyio
STEP, RESULT = Progress(1, 2).line(), Result(b'{"status": "success", "images": []}').line()
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "SETTLE_S", 0)


class Mortal:
    """A TorchServe with one worker. It dies with all requests that it has once one of them is `killer`.

    Others are answered when as many are open as `together`, and from then on.
    """

    def __init__(self, together: int = 1, deaths: int = 2) -> None:
        self.prompts: list[str] = []
        self.deaths = 0
        self._deaths, self._together = deaths, together
        self._open = 0
        self._died, self._go = anyio.Event(), anyio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.port == 8081:
            return management(request)
        prompt = read_fields(request.content, request.headers["x-form-type"])["prompt"]
        self.prompts.append(prompt)
        return httpx.Response(200, content=self._answer(prompt))

    async def _answer(self, prompt: str) -> AsyncIterator[bytes]:
        self._open += 1
        try:
            if self._open == self._together:
                self._go.set()
            yield STEP
            died = self._died
            await self._go.wait()
            if prompt == "killer" and self.deaths < self._deaths:
                self.deaths += 1
                self._died = anyio.Event()
                died.set()
                raise httpx.ReadError("cut")
            with anyio.move_on_after(0.05):
                await died.wait()
                raise httpx.ReadError("cut")
            yield RESULT
        finally:
            self._open -= 1


async def ask(http: httpx.AsyncClient, prompts: Sequence[str]) -> dict[str, httpx.Response]:
    answers: dict[str, httpx.Response] = {}

    async def one(prompt: str) -> None:
        answers[prompt] = await http.post("/txt2img", json={"prompt": prompt})

    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            for prompt in prompts:
                tasks.start_soon(one, prompt)
    return answers


async def test_a_death_costs_no_request() -> None:
    served = Mortal(together=4, deaths=1)
    async with client(served) as http:
        answers = await ask(http, ["a", "b", "c", "killer"])
    assert {answer.status_code for answer in answers.values()} == {200}
    assert sorted(served.prompts) == sorted(["a", "b", "c", "killer"] * 2)


async def test_after_the_death_of_torchserve_all_are_sent_again_at_once() -> None:
    sent, refused, is_dead = 0, 0, False
    all_sent = [anyio.Event(), anyio.Event()]  # the first time, and the second

    async def answer(time: int) -> AsyncIterator[bytes]:
        yield STEP
        await all_sent[time].wait()
        if time == 0:
            raise httpx.ReadError("cut")
        yield RESULT

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal sent, refused, is_dead
        if request.url.port == 8081 and not is_dead:
            return management(request)
        if is_dead:
            refused += request.url.port != 8081
            is_dead = refused < 4
            raise httpx.ConnectError("refused")
        sent += 1
        time, place = divmod(sent - 1, 4)
        if place == 3:
            is_dead = time == 0
            all_sent[time].set()
        return httpx.Response(200, content=answer(time))

    async with client(respond) as http:
        answers = await ask(http, ["a", "b", "c", "d"])
    assert {answer.status_code for answer in answers.values()} == {200} and sent == 8


async def test_a_request_outlives_two_deaths_of_torchserve_and_no_third() -> None:
    sent = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        if request.url.port == 8081:
            if sent and request.url.path == "/models":
                raise httpx.ConnectError("refused")
            return management(request)
        sent += 1
        return httpx.Response(200, content=cut())

    async def cut() -> AsyncIterator[bytes]:
        yield STEP
        raise httpx.ReadError("cut")

    async with client(respond) as http:
        (answer,) = (await ask(http, ["a"])).values()
    assert (answer.status_code, sent) == (503, 3)
    assert answer.json()["message"] == "TorchServe is starting or has stopped: try again shortly."


async def test_the_deaths_of_a_worker_and_of_torchserve_do_not_add_up() -> None:
    sent = 0

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        if request.url.port == 8081:
            if sent == 2 and request.url.path == "/models":
                raise httpx.ConnectError("refused")
            return management(request)
        sent += 1
        return httpx.Response(200, content=answer(sent))

    async def answer(time: int) -> AsyncIterator[bytes]:
        yield STEP
        if time < 3:
            raise httpx.ReadError("cut")
        yield RESULT

    async with client(respond) as http:
        (told,) = (await ask(http, ["a"])).values()
    assert (told.status_code, sent) == (200, 3)


async def test_a_request_that_kills_its_worker_does_so_twice_and_fails_alone() -> None:
    served = Mortal(together=4, deaths=10)
    async with client(served) as http:
        answers = await ask(http, ["a", "killer", "b", "c"])
        assert (await http.post("/txt2img", json={"prompt": "later"})).status_code == 200
    killer = answers.pop("killer")
    assert killer.status_code == 500 and "Retry-After" not in killer.headers
    assert "stopped twice while it had this request" in killer.json()["message"]
    assert {answer.status_code for answer in answers.values()} == {200}
    assert (served.deaths, served.prompts.count("killer")) == (2, 2)


async def test_a_stream_says_that_the_worker_is_restarted_and_goes_on() -> None:
    async with client(Mortal(deaths=1)) as http:
        answer = await http.post("/txt2img", json={"prompt": "killer"}, headers=EVENTS)
    step, result = 'event: progress\ndata: {"step": 1, "of": 2}\n\n', "event: result\n"
    assert answer.text.startswith(f"{step}: restarting\n\n{step}{result}")


async def test_a_job_goes_on() -> None:
    async with client(Mortal(deaths=1)) as http:
        started = await http.post("/v1/jobs", json={"kind": "txt2img", "prompt": "killer"})
        with anyio.fail_after(HANG_S):
            while (job := (await http.get(started.headers["location"])).json())["status"] != "completed":
                await anyio.sleep(0.01)
    assert job["started_at"] and job["step"] == 1


async def test_requests_wait_for_a_torchserve_that_is_started_again() -> None:
    refusals = 3

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal refusals
        if request.url.port == 8081:
            return management(request)
        refusals -= 1
        if refusals >= 0:
            raise httpx.ConnectError("refused")
        return serving(RESULT)(request)

    async with client(respond) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert answer.status_code == 200 and refusals < 0


async def test_requests_that_wait_in_vain_do_so_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.WATCH_S", 0.01)
    served, waited = Mortal(together=4, deaths=1), 0

    async def respond(request: httpx.Request) -> httpx.Response:
        nonlocal waited
        if request.url.port == 8081:
            return management(request, "LOADING" if served.deaths else "READY")
        if served.deaths:
            waited += 1
            await anyio.sleep_forever()
        return await served(request)

    async with client(respond, restart_s=0.1) as http:
        answers = await ask(http, ["a", "b", "c", "killer"])
    assert {answer.status_code for answer in answers.values()} == {503} and waited == 1
    assert all("the model is loading" in answer.json()["message"] for answer in answers.values())


@pytest.mark.parametrize(
    "end",
    [
        b'{"code": 507, "type": "InternalServerException", "message": "Worker died."}\n',
        STEP,  # and no result
        httpx.ReadError("cut"),
    ],
)
async def test_each_sign_of_a_death_is_one(end: bytes | Exception) -> None:
    asked = 0

    async def content() -> AsyncIterator[bytes]:
        if isinstance(end, Exception):
            raise end
        yield end

    def respond(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        if request.url.port == 8081:
            return management(request)
        asked += 1
        is_json = isinstance(end, bytes) and "code" in json.loads(end)
        return httpx.Response(507 if is_json else 200, content=content())

    async with client(respond) as http:
        answer = await http.post("/txt2img", data={"prompt": "x"})
    assert (answer.status_code, asked) == (500, 2)


async def test_a_client_that_reads_slowly_keeps_no_other_waiting() -> None:
    sender = restarts.Restarts()

    def dies_once() -> Any:
        answers = iter([WorkerDied(), Result(b"{}")])

        async def send() -> Any:
            answer = next(answers)
            if isinstance(answer, WorkerDied):
                raise answer
            yield answer

        return sender.generate("txt2img", send)

    slow, quick = dies_once(), dies_once()
    assert [await anext(slow), await anext(slow)] == [Queued(1, restarts=True), Result(b"{}")]
    with anyio.fail_after(HANG_S):
        assert [event async for event in quick][-1] == Result(b"{}")
    await slow.aclose()
