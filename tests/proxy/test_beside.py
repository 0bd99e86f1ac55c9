"""A request whose client waits is asked about, and cancelled, by the X-Request-Id that the client chose."""

import base64
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from handlers.wire import Progress
from tests.support.dialects import Held, result
from tests.support.torchserve import client, serving

pytestmark = pytest.mark.anyio

HANGS_S = 30
MINE = {"X-Request-Id": "mine"}
PREVIEW = base64.b64encode(b"preview").decode()


async def until(http: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    """The request as it is shown, once it has these members."""
    with anyio.fail_after(HANGS_S):
        while True:
            answer = await http.get("/v1/jobs/mine")
            if answer.is_success and members.items() <= answer.json().items():
                job: dict[str, Any] = answer.json()
                return job
            await anyio.sleep(0.01)


@pytest.mark.parametrize("path", ["/txt2img", "/v1/images/generations", "/images/generations"])
async def test_a_request_is_asked_about_while_its_client_waits(path: str) -> None:
    served = Held(Progress(1, 4).line(), Progress(2, 4, PREVIEW).line())
    async with client(served) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(http.post, path, json={"prompt": "x"}, headers=MINE))
        job = await until(http, step=2)
        assert (job["status"], job["steps"], job["queue_position"]) == ("in_progress", 4, 0)
        assert job["id"].startswith("req_") and (await http.get(job["preview_url"])).content == b"preview"
        assert not (await http.get("/v1/jobs")).json()["data"]  # which are those without a connection
        served.go.set()
        job = await until(http, status="completed")
        assert not job["images"] and job["error"] is None


async def test_it_is_cancelled_beside_its_connection() -> None:
    answers: list[httpx.Response] = []
    for path, headers in [
        ("/txt2img", {}), ("/v1/images/edits", {}), ("/txt2img", {"Accept": "text/event-stream"}),
    ]:  # fmt: skip
        served = Held(Progress(1, 4).line())
        async with client(served) as http:

            async def ask(path: str = path, headers: Any = headers, http: httpx.AsyncClient = http) -> None:
                sent = {"prompt": "x", "image": "QUJD"}
                answers.append(await http.post(path, json=sent, headers=MINE | headers))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                await until(http, status="in_progress")
                assert (await http.delete("/v1/jobs/mine")).json()["status"] == "cancelled"
            assert served.closed.is_set()
            assert (await http.get("/v1/jobs/mine")).json()["status"] == "cancelled"
    native, openai, events = answers
    assert (native.status_code, native.json()["message"]) == (409, "This request was cancelled.")
    assert (openai.status_code, openai.headers["x-should-retry"]) == (409, "false")
    assert events.text.endswith('"message": "This request was cancelled.", "code": 409}\n\n')


async def test_it_is_cancelled_in_the_queue() -> None:
    served = Held(Progress(1, 4).line())
    async with client(served, max_open=1) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(http.post, "/txt2img", json={"prompt": "x"}))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(partial(http.post, "/txt2img", json={"prompt": "x"}, headers=MINE))
        await until(http, status="queued", queue_position=1)
        assert (await http.post("/v1/jobs/mine/cancel")).json()["status"] == "cancelled"
        served.go.set()
    assert len(served.bodies) == 1


async def test_it_is_nobody_elses_and_tells_its_failure() -> None:
    line = b'{"error": {"status": 400, "message": "num_outputs must be at most 8."}}\n'
    async with client(serving(line), api_key="mine,yours") as http:
        for key in ("mine", "yours"):
            assert (await http.get("/v1/jobs/mine", headers={"X-API-Key": key})).status_code == 404
        sent = {"json": {"prompt": "x", "n": 9}, "headers": MINE | {"X-API-Key": "mine"}}
        assert (await http.post("/v1/images/generations", **sent)).status_code == 400  # type: ignore[arg-type]
        job = (await http.get("/v1/jobs/mine", headers={"X-API-Key": "mine"})).json()
        assert (job["status"], job["error"]["param"]) == ("failed", "n")
        assert (await http.get("/v1/jobs/mine", headers={"X-API-Key": "yours"})).status_code == 404


async def test_a_job_is_found_by_it_too() -> None:
    async with client(serving(result())) as http:
        started = await http.post("/v1/jobs", json={"kind": "txt2img", "prompt": "x"}, headers=MINE)
        job = await until(http, status="completed")
        assert job["id"] == started.json()["id"] and job["images"]
        # an id that cannot be one is not adopted
        await http.post("/txt2img", json={"prompt": "x"}, headers={"X-Request-Id": "with blanks"})
        assert (await http.get("/v1/jobs/with blanks")).status_code == 404
