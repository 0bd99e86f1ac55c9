"""Jobs behind HAProxy: a job is on one node, and every question about it reaches that node. `make test-cluster`."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.haproxy import balancing
from tests.cluster.nodes import Node, started
from tests.support.running import HANG_S, wait_for

pytestmark = pytest.mark.cluster

APPLE = {"kind": "txt2img", "prompt": "a red apple", "num_inference_steps": 8}
LONG = APPLE | {"num_inference_steps": 250, "num_outputs": 8}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[list[Node]]:
    with started(tmp_path_factory.mktemp("nodes"), tiny_model, 2) as nodes:
        yield nodes


@pytest.fixture
def http(nodes: list[Node], tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the balancer that keeps no connection, which would reach the same node again."""
    ports = [node.port for node in nodes]
    with (
        balancing([*ports, ports[0]], tmp_path / "haproxy.log") as url,
        httpx.Client(base_url=url, timeout=HANG_S, headers={"Connection": "close"}) as http,
    ):
        yield http


def ended(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    while job["status"] in ("queued", "in_progress"):
        answer = http.get(f"/v1/jobs/{job['id']}?wait=5")
        assert answer.status_code == 200, answer.text
        job = answer.json()
    return job


def node_of(name: str) -> str:
    return name.split("_")[1]


def test_every_question_reaches_the_node_of_its_job(http: httpx.Client) -> None:
    jobs = [http.post("/v1/jobs", json=APPLE).json() for _ in range(8)]
    assert {node_of(job["id"]) for job in jobs} == {"node1", "node2"}
    for job in jobs:
        job = ended(http, job)
        assert job["status"] == "completed"
        assert http.get(job["images"][0]["url"]).content.startswith(b"\x89PNG")
    sent = {"prompt": "x", "steps": 2, "response_format": "url"}
    for _ in range(4):
        address = http.post("/v1/images/generations", json=sent).json()["data"][0]["url"]
        assert address.startswith(str(http.base_url).rstrip("/")) and http.get(address).status_code == 200


def test_a_name_of_the_clients_own_leads_to_one_node(http: httpx.Client) -> None:
    for i in range(4):
        headers = {"Idempotency-Key": f"once-{i}"}
        jobs = [http.post("/v1/jobs", json=APPLE, headers=headers).json()["id"] for _ in range(3)]
        assert len(set(jobs)) == 1
        name = {"X-Request-Id": f"mine-{i}"}
        waiting = threading.Thread(target=http.post, args=("/txt2img",), kwargs={"json": LONG, "headers": name})
        waiting.start()
        wait_for(lambda i=i: http.get(f"/v1/jobs/mine-{i}").status_code == 200)
        assert [http.get(f"/v1/jobs/mine-{i}").status_code for _ in range(4)] == [200] * 4
        assert http.delete(f"/v1/jobs/mine-{i}").json()["status"] == "cancelled"
        waiting.join(HANG_S)


def test_a_node_that_is_stopped_finishes_its_jobs_and_gives_their_images(nodes: list[Node], http: httpx.Client) -> None:
    job = http.post("/v1/jobs", json=LONG).json()
    node = next(node for node in nodes if node.name == node_of(job["id"]))
    with ThreadPoolExecutor() as pool:
        stopping = pool.submit(node.stop)
        job = ended(http, job)
        assert job["status"] == "completed"
        assert http.get(job["images"][7]["url"]).content.startswith(b"\x89PNG")
        stopping.result()
    answer = http.get(f"/v1/jobs/{job['id']}")
    assert answer.status_code == 404 and f"on the server '{node.name}'" in answer.json()["error"]["message"]
