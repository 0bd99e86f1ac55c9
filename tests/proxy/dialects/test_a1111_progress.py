"""AUTOMATIC1111's progress and interruption, which concern the caller's own requests alone."""

import base64
import json
from functools import partial
from typing import Any

import anyio
import httpx
import pytest

from handlers.wire import Progress
from tests.support.dialects import DESCRIPTION, Held
from tests.support.torchserve import client

pytestmark = pytest.mark.anyio

HANGS_S = 30
PREVIEW = base64.b64encode(b"preview").decode()
TXT2IMG, PROGRESS = "/sdapi/v1/txt2img", "/sdapi/v1/progress"
IDLE = {
    "progress": 0.0, "eta_relative": 0.0, "current_image": None, "textinfo": None,
    "state": {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
        "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
    },
}  # fmt: skip
OWN, FOREIGN = {"Authorization": "Bearer own"}, {"Authorization": "Bearer foreign"}


held = partial(Held, description=DESCRIPTION)


async def until(http: httpx.AsyncClient, path: str = PROGRESS, headers: Any = None, **state: Any) -> dict[str, Any]:
    """The progress, once its state has these members."""
    with anyio.fail_after(HANGS_S):
        while True:
            told: dict[str, Any] = (await http.get(path, headers=headers)).json()
            if state.items() <= told["state"].items():
                return told
            await anyio.sleep(0.01)


async def internal(http: httpx.AsyncClient, name: str, **fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = (await http.post("/internal/progress", json={"id_task": name} | fields)).json()
    return told


async def test_nothing_runs() -> None:
    async with client(held()) as http:
        assert (await http.get(PROGRESS)).json() == IDLE
        assert (await http.get(f"{PROGRESS}?id_task=none")).json() == IDLE
        assert (await http.post("/sdapi/v1/interrupt")).json() == {}
        assert (await http.post("/sdapi/v1/skip")).json() is None
        assert await internal(http, "none") == {
            "active": False, "queued": False, "completed": False, "progress": None, "eta": None, "live_preview": None,
            "id_live_preview": -1, "textinfo": None,
        }  # fmt: skip


async def test_a_request_on_its_way() -> None:
    served = held(Progress(1, 4).line(), Progress(2, 4, PREVIEW).line())
    async with client(served) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(http.post, TXT2IMG, json={"prompt": "x", "force_task_id": "task(txt2img-A)"}))
        told = await until(http, sampling_step=2)
        assert told["progress"] == 0.51 and told["current_image"] == PREVIEW and told["textinfo"] is None
        state = told["state"]
        assert (state["job_count"], state["job_no"], state["sampling_steps"]) == (1, 0, 4)
        assert len(state["job_timestamp"]) == 14 and state["job"]
        told = (await http.get(f"{PROGRESS}?skip_current_image=true&id_task=task(txt2img-A)")).json()
        assert told["current_image"] is None and told["state"]["sampling_step"] == 2
        told = await internal(http, "task(txt2img-A)")
        assert (told["active"], told["queued"], told["completed"], told["progress"]) == (True, False, False, 0.51)
        assert told["live_preview"] == f"data:image/jpeg;base64,{PREVIEW}" and told["id_live_preview"] == 2
        assert (await internal(http, "task(txt2img-A)", live_preview=False))["live_preview"] is None
        served.go.set()
        assert await until(http, job_count=0) == IDLE
        told = await internal(http, "task(txt2img-A)")
        assert (told["active"], told["queued"], told["completed"]) == (False, False, True)


async def test_a_request_in_the_queue_is_not_idle() -> None:
    served = held(Progress(1, 4).line())
    async with client(served, max_open=1) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(http.post, "/txt2img", json={"prompt": "x"}))
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(partial(http.post, TXT2IMG, json={"force_task_id": "mine"}))
        told = await until(http, job_count=-1)
        assert told["progress"] == 0.01 and told["state"]["sampling_steps"] == 0
        with anyio.fail_after(HANGS_S):
            while (told := await internal(http, "mine"))["textinfo"] != "In queue: 1":
                await anyio.sleep(0.01)
        assert (told["active"], told["queued"], told["completed"]) == (False, True, False)
        served.go.set()


@pytest.mark.parametrize("path", ["interrupt", "skip", "interrupt?id_task=mine"])
async def test_an_interrupted_request_is_answered_without_images(path: str) -> None:
    served, answers = held(Progress(1, 4).line()), []

    async with client(served) as http:

        async def ask() -> None:
            answers.append(await http.post(TXT2IMG, json={"prompt": "x", "seed": 5, "force_task_id": "mine"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(http, job_count=1)
            assert (await http.post(f"/sdapi/v1/{path}")).status_code == 200
        assert served.closed.is_set() and (await http.get(PROGRESS)).json() == IDLE
    (answer,) = answers
    body = answer.json()
    info = json.loads(body["info"])
    assert answer.status_code == 200 and body["images"] == [] and body["parameters"]["prompt"] == "x"
    assert (info["seed"], info["all_seeds"], info["infotexts"]) == (5, [], [])
    assert "was interrupted" in info["extra_generation_params"]["Warnings"]


async def test_several_init_images_are_one_request() -> None:
    served, answers = held(Progress(1, 4).line()), []

    async with client(served) as http:

        async def ask() -> None:
            sent = {"init_images": [PREVIEW, PREVIEW], "batch_size": 2, "force_task_id": "mine"}
            answers.append(await http.post("/sdapi/v1/img2img", json=sent))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            assert (await until(http, sampling_step=1))["state"]["sampling_steps"] == 8
            await http.post("/sdapi/v1/interrupt")
    assert answers[0].json()["images"] == [] and len(served.bodies) == 1


async def test_others_requests_are_not_seen_and_not_interrupted() -> None:
    served = held(Progress(1, 4).line())
    async with client(served, api_key="own,foreign") as http, anyio.create_task_group() as tasks:
        sent = {"prompt": "x", "force_task_id": "mine"}
        tasks.start_soon(partial(http.post, TXT2IMG, json=sent, headers=OWN))
        # of the same owner, with another dialect
        tasks.start_soon(partial(http.post, "/txt2img", json={"prompt": "x"}, headers={**OWN, "X-Request-Id": "page"}))
        await until(http, headers=OWN, job_count=1)
        for query in ("", "?id_task=mine"):
            assert (await http.get(PROGRESS + query, headers=FOREIGN)).json() == IDLE
            await http.post(f"/sdapi/v1/interrupt{query}", headers=FOREIGN)
        assert (await until(http, headers=OWN, job_count=1))["state"]["sampling_step"] == 1
        for _ in range(2):
            await http.post("/sdapi/v1/interrupt", headers=OWN)
        assert (await http.get("/v1/jobs/page", headers=OWN)).json()["status"] != "cancelled"
        served.go.set()


async def test_the_newest_of_several() -> None:
    served = held(Progress(1, 4).line())
    async with client(served) as http, anyio.create_task_group() as tasks:
        for name in ("first", "second"):
            tasks.start_soon(partial(http.post, TXT2IMG, json={"force_task_id": name}))
            await until(http, f"{PROGRESS}?id_task={name}", job_count=1)
        await http.post("/sdapi/v1/interrupt")
        told = [(await internal(http, name))["active"] for name in ("first", "second")]
        assert told == [True, False]
        served.go.set()
