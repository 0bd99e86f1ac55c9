"""Jobs on the real server."""

import httpx
import pytest

from tests.support.running import HANG_S, Running, wait_for

pytestmark = pytest.mark.e2e

LONG = {
    "kind": "txt2img",
    "prompt": "a house",
    "num_inference_steps": 250,
    "num_outputs": 4,
    "width": 256,
    "height": 256,
}


def ended(instance: Running, job: dict[str, object]) -> dict[str, object]:
    while job["status"] in ("queued", "in_progress"):
        job = httpx.get(f"{instance.url}/v1/jobs/{job['id']}?wait=20", timeout=HANG_S).json()
    return job


def test_a_job_has_the_images_of_its_request(combined: Running) -> None:
    fields = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 2}
    answer = httpx.post(f"{combined.url}/v1/jobs", json=fields | {"kind": "txt2img"}, timeout=HANG_S)
    assert answer.status_code == 202
    job = ended(combined, answer.json())
    (image,) = job["images"]
    assert (job["status"], job["step"], job["steps"], image["seed"]) == ("completed", 2, 2, 3)
    file = httpx.get(combined.url + image["url"], timeout=HANG_S)
    assert file.headers["content-type"] == "image/png" and file.content.startswith(b"\x89PNG")


def test_a_job_by_prefer_that_fails(combined: Running) -> None:
    answer = combined.post("txt2img", {"prompt": "x", "width": 77}, headers={"Prefer": "respond-async"})
    job = ended(combined, answer.json())
    assert job["status"] == "failed" and "the nearest is 80" in job["error"]["message"]


def test_a_cancelled_job_leaves_the_worker(combined: Running) -> None:
    job = httpx.post(f"{combined.url}/v1/jobs", json=LONG, timeout=HANG_S).json()
    wait_for(lambda: combined.activity("txt2img")["open_requests"] == 1)
    assert httpx.delete(f"{combined.url}/v1/jobs/{job['id']}", timeout=HANG_S).json()["status"] == "cancelled"
    wait_for(lambda: combined.activity("txt2img")["open_requests"] == 0)
