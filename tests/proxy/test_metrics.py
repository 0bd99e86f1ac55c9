"""`GET /metrics` in front of a TorchServe that is played by a transport."""

import json
import logging

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from handlers.wire import Failed
from tests.support.dialects import Held
from tests.support.torchserve import RESULT, client, management, serving

pytestmark = pytest.mark.anyio

ACTIVITY = {
    "open_requests": 2, "unet_forwards": 10, "merged_forwards": 5, "unet_rows": 40, "steps": 20, "queue_seconds": 1.5,
    "started_requests": 3, "stage_seconds": {"unet": 4.5, "vae": 0.5},
}  # fmt: skip


def respond(request: httpx.Request) -> httpx.Response:
    if request.url.port == 8082:
        return httpx.Response(200, text="# TYPE ts_inference_requests_total counter\nts_inference_requests_total 7.0\n")
    if request.headers.get("x-task") == "describe":
        models = {"models": [{"model": "m", "tasks": ["txt2img"], "activity": ACTIVITY}]}
        return serving(b'{"result": ' + json.dumps(models).encode() + b"}\n")(request)
    return serving(RESULT)(request)


async def test_all_figures_in_one_answer() -> None:
    async with client(respond) as http:
        await http.post("/txt2img", data={"prompt": "x"})
        await http.get("/nope/whatever")
        answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["sd_requests_total", "/txt2img", "200", "native"] == 1
    assert samples["sd_requests_total", "", "404", "other"] == 1
    assert samples[("sd_requests_in_flight",)] == 1  # the scrape itself
    assert samples["sd_request_seconds_count", "/txt2img"] == 1
    assert samples["sd_unet_rows_total", "txt2img"] == 40
    assert samples["sd_queue_seconds_total", "masking"] == 1.5
    assert samples["sd_stage_seconds_total", "txt2img", "unet"] == 4.5
    assert samples["sd_open_requests", "img2img"] == 2
    assert samples[("ts_inference_requests_total",)] == 7


async def test_a_stream_that_fails_is_counted_and_logged_with_its_status(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proxy")
    async with client(serving(Failed(507, "no room").line())) as http:
        headers = {"Accept": "text/event-stream"}
        answer = await http.post("/txt2img", data={"prompt": "x"}, headers=headers)
        counted = (await http.get("/metrics")).text
    assert answer.status_code == 200
    assert 'sd_requests_total{dialect="native",route="/txt2img",status="507"} 1.0' in counted
    assert "POST /txt2img 507" in caplog.text


@pytest.mark.parametrize(
    ("path", "dialect"), [("/txt2img", "native"), ("/v1/images/generations", "openai"), ("/v1/jobs", "jobs")]
)
async def test_figures_and_the_log_name_the_dialect(path: str, dialect: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proxy")
    served, sent = Held(), {"prompt": "x", "kind": "txt2img"}
    served.go.set()
    async with client(served) as http:
        assert (await http.post(path, json=sent)).is_success
        job = (await http.post(path, json=sent, headers={"Prefer": "respond-async"})).json()
        while (await http.get(f"/v1/jobs/{job['id']}?wait=5")).json()["status"] != "completed":
            pass
        counted = (await http.get("/metrics")).text
    assert f'sd_requests_total{{dialect="{dialect}",route="{path}",status="202"}}' in counted
    assert f'sd_jobs_total{{dialect="{dialect}",status="completed"}}' in counted
    lines = [record.fields for record in caplog.records if hasattr(record, "fields")]
    ended = [line for line in lines if "job" in line]
    assert ended and all(line["dialect"] == dialect and line["job"] == "txt2img" for line in ended)
    begun = [line["request_id"] for line in lines if line.get("route") == path and line["dialect"] == dialect]
    assert {line["request_id"] for line in ended} <= set(begun) and f" {dialect}" in caplog.text


async def test_what_does_not_answer_is_left_out() -> None:
    def down(request: httpx.Request) -> httpx.Response:
        if request.url.port == 8081:
            return management(request)
        raise httpx.ConnectError("refused")

    async with client(down) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 200 and "sd_requests_in_flight" in answer.text and "archive=" not in answer.text
