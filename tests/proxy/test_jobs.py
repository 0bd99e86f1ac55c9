"""Jobs in front of a played TorchServe: started, asked about, fetched, cancelled, and whose they are."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.app import create_app
from proxy.jobs import Job
from proxy.settings import Settings
from proxy.shutdown import Drain
from tests.support.dialects import DATA, FILE, Held, result
from tests.support.torchserve import client, serving

pytestmark = pytest.mark.anyio

HANGS_S = 30
ASYNC = {"Prefer": "respond-async"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # curl's default
TEXT = {"Content-Type": "text/plain;charset=UTF-8"}  # of a string in browsers
APPLE = {"kind": "txt2img", "prompt": "an apple"}
PREVIEW = base64.b64encode(b"preview").decode()


async def ended(http: httpx.AsyncClient, job: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The job once it has ended."""
    with anyio.fail_after(HANGS_S):
        while job["status"] in ("queued", "in_progress"):
            job = (await http.get(f"/v1/jobs/{job['id']}?wait=20", **options)).json()
    return job


async def running(http: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    with anyio.fail_after(HANGS_S):
        while job["status"] == "queued":
            job = (await http.get(f"/v1/jobs/{job['id']}?wait=20")).json()
    return job


async def test_a_job_from_its_start_to_its_images() -> None:
    served = Held(Progress(1, 4).line(), Progress(2, 4, PREVIEW).line(), end=result(False, True, warnings=("Hm.",)))
    async with client(served) as http:
        answer = await http.post("/v1/jobs", json=APPLE | {"preview": True})
        job = answer.json()
        assert answer.status_code == 202 and answer.headers["location"] == f"/v1/jobs/{job['id']}"
        assert answer.headers["retry-after"] == "1" and answer.headers["openai-poll-after-ms"] == "1000"
        assert (job["object"], job["kind"], job["status"], job["images"]) == ("job", "txt2img", "queued", [])
        assert len(job["id"]) == len("job_") + 32 and job["expires_at"] is None and job["error"] is None
        job = await running(http, job)
        while job["step"] < 2:
            job = (await http.get(f"/v1/jobs/{job['id']}")).json()
        assert (job["status"], job["queue_position"]) == ("in_progress", 0)
        assert "sd_requests_in_flight 2.0" in (await http.get("/metrics")).text  # with the scrape
        assert (job["step"], job["steps"], job["progress"]) == (2, 4, 0.5) and job["eta_seconds"] >= 0
        preview = await http.get(job["preview_url"])
        assert (preview.content, preview.headers["content-type"]) == (b"preview", "image/jpeg")
        assert (await http.get(f"/v1/jobs/{job['id']}/images/0")).status_code == 404
        served.go.set()
        job = await ended(http, job)
        assert (job["status"], job["progress"], job["queue_position"]) == ("completed", 1.0, None)
        assert job["warnings"] == ["Hm."] and job["preview_url"] is None and job["eta_seconds"] is None
        assert job["expires_at"] >= job["completed_at"] >= job["started_at"] >= job["created_at"] > 1e9
        assert job["images"][1] == {
            "index": 1, "seed": 8, "mime_type": "image/png", "width": 64, "height": 32, "nsfw": True,
            "url": f"/v1/jobs/{job['id']}/images/1",
        }  # fmt: skip
        image = await http.get(job["images"][0]["url"])
        assert (image.content, image.headers["content-type"]) == (FILE, "image/png")
        again = await http.get(job["images"][0]["url"], headers={"If-None-Match": image.headers["etag"]})
        assert again.status_code == 304
        assert (await http.get("/v1/jobs")).json() == {"object": "list", "data": [job]}
        assert 'sd_jobs_total{dialect="jobs",status="completed"} 1.0' in (await http.get("/metrics")).text
    ((task, body),) = served.bodies
    assert task == "txt2img" and json.loads(body)["prompt"] == "an apple"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/img2img", {"data": {"prompt": "x"}}),
        ("/v1/jobs?kind=img2img", {"data": {"prompt": "x"}}),
        ("/v1/jobs", {"data": {"prompt": "&kind=masking", "kind": "img2img"}}),
        ("/v1/jobs", {"content": b"prompt=x&kind=img2img"}),
        ("/v1/images/variations", {"files": {"image": ("a.png", FILE)}}),
        ("/images/edits", {"data": {"prompt": "x"}, "files": {"image": ("a.png", FILE)}}),
        ("/v1/jobs", {"data": {"prompt": "x", "kind": "img2img"}, "files": {"init_image": ("a.png", FILE)}}),
        ("/v1/images/edits", {"json": {"prompt": "x", "images": [{"image_url": DATA}]}}),
    ],
)
async def test_every_route_that_generates_can_start_one(path: str, sent: Any) -> None:
    served = Held()
    served.go.set()
    async with client(served) as http:
        answer = await http.post(path, headers=ASYNC, **sent)
        assert answer.status_code == 202 and answer.headers["preference-applied"] == "respond-async"
        assert answer.json()["kind"] == "img2img"
        assert (await ended(http, answer.json()))["status"] == "completed"
    assert served.bodies[-1][0] == "img2img"


@pytest.mark.parametrize(("path", "headers"), [("/v1/jobs?kind=upscale", {}), ("/upscale", ASYNC)])
async def test_enlarging_an_image_can_be_one(path: str, headers: Any) -> None:
    served = Held()
    served.go.set()
    async with client(served) as http:
        answer = await http.post(path, data={"init_image": DATA, "scale": 2}, headers=headers)
        assert (answer.status_code, answer.json()["kind"]) == (202, "upscale")
        assert (await ended(http, answer.json()))["status"] == "completed"
    assert served.bodies[-1][0] == "upscale"


async def test_a_cancelled_job_frees_its_place_at_once() -> None:
    for way in ("delete", "post"):
        served = Held(Progress(1, 2).line())
        async with client(served) as http:
            job = await running(http, (await http.post("/v1/jobs", json=APPLE)).json())
            path = f"/v1/jobs/{job['id']}" + ("/cancel" if way == "post" else "")
            assert (await http.request(way, path)).json()["status"] == "cancelled"
            with anyio.fail_after(HANGS_S):
                await served.closed.wait()
            again = (await http.request(way, path)).json()
            assert (again["status"], again["images"], again["eta_seconds"]) == ("cancelled", [], None)


async def test_a_job_that_has_ended_stays_as_it_is() -> None:
    async with client(serving(result())) as http:
        job = await ended(http, (await http.post("/v1/jobs", json=APPLE)).json())
        assert (await http.delete(f"/v1/jobs/{job['id']}")).json() == job


async def test_a_waiting_job_tells_its_place() -> None:
    served = Held(Progress(1, 2).line())
    async with client(served, max_open=1) as http:
        first = await running(http, (await http.post("/v1/jobs", json=APPLE)).json())
        second = (await http.post("/v1/jobs", json=APPLE)).json()
        with anyio.fail_after(HANGS_S):
            while second["queue_position"] != 1:
                second = (await http.get(f"/v1/jobs/{second['id']}")).json()
        assert (second["status"], second["eta_seconds"]) == ("queued", None)
        await http.delete(f"/v1/jobs/{first['id']}")
        assert (await running(http, second))["status"] == "in_progress"


async def test_a_job_says_that_its_model_is_loaded() -> None:
    async with client(Held(Progress(1, 2).line())) as http:
        job = (await http.post("/v1/jobs", json=APPLE)).json()
        told: Job = http._transport.app.state.jobs.find("127.0.0.1", job["id"])  # type: ignore[attr-defined]
        told.tell(Queued(1, loads="mine"))
        assert (await http.get(f"/v1/jobs/{job['id']}")).json()["loads"] == "mine"
        assert "loads" not in await running(http, job)
        await http.delete(f"/v1/jobs/{job['id']}")


async def test_a_failed_job_says_why() -> None:
    line = b'{"error": {"status": 400, "message": "num_outputs must be at most 8."}}\n'
    async with client(serving(line)) as http:
        job = await ended(http, (await http.post("/v1/jobs", json=APPLE)).json())
        assert (job["status"], job["images"]) == ("failed", [])
        assert job["error"]["message"] == "num_outputs must be at most 8."
        answer = await http.post("/v1/images/generations", json={"prompt": "x", "n": 9}, headers=ASYNC)
        assert (await ended(http, answer.json()))["error"]["param"] == "n"
    async with client(serving(Progress(1, 2).line(), Result(b"no JSON").line())) as http:
        job = await ended(http, (await http.post("/v1/jobs", json=APPLE)).json())
        assert job["error"]["message"].startswith("This is a fault of the server")


async def test_a_job_belongs_to_a_key_or_else_to_an_address() -> None:
    mine, yours = {"X-API-Key": "mine"}, {"Authorization": "Bearer yours"}
    async with client(serving(result()), api_key="mine,yours") as http:
        job = (await http.post("/v1/jobs", json=APPLE, headers=mine)).json()
        job = await ended(http, job, headers=mine)
        for method, path in [
            ("GET", f"/v1/jobs/{job['id']}"),
            ("DELETE", f"/v1/jobs/{job['id']}"),
            ("GET", job["images"][0]["url"]),
        ]:
            assert (await http.request(method, path, headers=yours)).status_code == 404
            assert (await http.request(method, path)).status_code == 401
            assert (await http.request(method, path, headers=mine)).status_code == 200
        assert not (await http.get("/v1/jobs", headers=yours)).json()["data"]


async def test_an_idempotency_key_starts_one_job() -> None:
    served = Held()
    async with client(served) as http:
        headers = {"Idempotency-Key": "once"}
        first = (await http.post("/v1/jobs", json=APPLE, headers=headers)).json()
        second = await http.post("/v1/jobs", json=APPLE, headers=headers)
        assert second.status_code == 202 and second.json()["id"] == first["id"]
        other = await http.post("/v1/jobs", json=APPLE | {"seed": 1}, headers=headers)
        assert other.status_code == 422 and "another request" in other.json()["error"]["message"]
        headers = {"Idempotency-Key": "a form"}
        forms = [await http.post("/v1/jobs", data=APPLE, files={"x": b"x"}, headers=headers) for _ in range(2)]
        assert forms[0].request.headers["content-type"] != forms[1].request.headers["content-type"]
        assert forms[0].json()["id"] == forms[1].json()["id"]
        await http.delete(f"/v1/jobs/{forms[0].json()['id']}")
        answer = await http.post("/v1/jobs", json=APPLE, headers={"Idempotency-Key": "x" * 256})
        assert answer.status_code == 400
        third = await http.post("/v1/jobs", json=APPLE, headers={"Idempotency-Key": "twice"})
        assert third.json()["id"] != first["id"]
        await http.delete(f"/v1/jobs/{first['id']}")
        await http.delete(f"/v1/jobs/{third.json()['id']}")


async def test_what_is_refused() -> None:
    served = Held()
    async with client(served, max_kept=1) as http:
        for path, sent, status, sentence in [
            ("/v1/jobs", {"json": {"prompt": "x"}}, 400, "kind must be one of txt2img, img2img, masking, upscale"),
            ("/v1/jobs?kind=video", {"json": {"prompt": "x"}}, 400, "kind must be"),
            ("/v1/jobs", {"data": {"prompt": "x"}}, 400, "kind must be"),
            ("/v1/jobs?kind=img2img", {"json": {"prompt": "x", "kind": "txt2img"}}, 400, "kind differs"),
            ("/v1/jobs?kind=img2img", {"data": {"prompt": "x", "kind": "txt2img"}}, 400, "kind differs"),
            ("/v1/images/generations", {"json": {"prompt": "x", "stream": True}}, 400, "A stream cannot be a job"),
            (
                "/v1/jobs",
                {"content": json.dumps(APPLE), "headers": FORM},
                400,
                "The body looks like JSON: send it with",
            ),
            ("/v1/jobs?kind=txt2img", {"content": " \n{}", "headers": {}}, 400, "looks like JSON"),
            ("/v1/jobs?kind=txt2img", {"content": "{}", "headers": TEXT}, 400, "looks like JSON"),
        ]:
            answer = await http.post(path, **{"headers": ASYNC} | sent)
            assert answer.status_code == status and sentence in answer.json()["error"]["message"]
        job = (await http.post("/v1/jobs", json=APPLE)).json()
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=ASYNC)
        assert answer.status_code == 429 and "1 jobs are open" in answer.json()["message"]
        assert (await http.get(f"/v1/jobs/{job['id']}?wait=61")).status_code == 400
        assert (await http.get("/v1/jobs/job_none")).status_code == 404
        answer = await http.put("/v1/jobs")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
        await http.delete(f"/v1/jobs/{job['id']}")


async def test_an_ending_server_waits_for_jobs_and_then_fails_them() -> None:
    async with app_with_client(Held(Progress(1, 2).line())) as (app, http):
        job = await running(http, (await http.post("/v1/jobs", json=APPLE)).json())
        drain: Drain = app.state.drain
        assert drain.in_flight == 1
        drain.abort()
        job = await ended(http, job)
        assert "was shut down" in job["error"]["message"] and drain.in_flight == 0
    # what ends meanwhile can still be fetched
    served = Held(Progress(1, 2).line())
    async with app_with_client(served) as (app, http):
        drain = app.state.drain
        job = await running(http, (await http.post("/v1/jobs", json=APPLE)).json())
        drain.begun = True
        served.go.set()
        job = await ended(http, job)
        assert (job["status"], drain.in_flight) == ("completed", 1)
        assert (await http.get(job["images"][0]["url"])).content == FILE
        drain.abort()
        with anyio.fail_after(HANGS_S):
            while drain.in_flight:
                await anyio.sleep(0.01)
        assert (await http.get(job["images"][0]["url"])).content == FILE
    # what runs when the server ends is cancelled
    async with app_with_client(Held(Progress(1, 2).line())) as (app, http):
        await running(http, (await http.post("/v1/jobs", json=APPLE)).json())
    assert app.state.drain.in_flight == 0 and app.state.bodies.bytes_in_flight == 0


@asynccontextmanager
async def app_with_client(served: Held) -> AsyncIterator[tuple[Starlette, httpx.AsyncClient]]:
    app = create_app(Settings(), httpx.MockTransport(served))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
    async with app.router.lifespan_context(app), http:
        yield app, http


async def test_a_job_ends_at_the_deadline() -> None:
    async with client(Held(Progress(1, 2).line()), deadline_s=0.01) as http:
        job = await ended(http, (await http.post("/v1/jobs", json=APPLE)).json())
        assert job["error"]["code"] == "deadline_exceeded"


async def test_images_beyond_what_may_be_kept_fail_the_job() -> None:
    async with client(serving(result()), max_kept_bytes=len(FILE) - 1) as http:
        job = await ended(http, (await http.post("/v1/jobs", json=APPLE)).json())
        assert job["error"]["code"] == "request_too_large" and not job["images"]


async def test_an_expired_job_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.kept.KEEP_S", 0)
    async with client(serving(result())) as http:
        job = (await http.post("/v1/jobs", json=APPLE)).json()
        with anyio.fail_after(HANGS_S):
            while (answer := await http.get(f"/v1/jobs/{job['id']}")).status_code == 200:
                pass
    assert answer.status_code == 410 and "has expired" in answer.json()["error"]["message"]
