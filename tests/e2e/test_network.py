"""The real server on all addresses: with a key, over TLS, its figures, and nothing but the proxy in reach."""

import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.paths import HOME
from tests.support.running import HANG_S, Running, wait_for

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def http(guarded: Running) -> Iterator[httpx.Client]:
    folder = guarded.output.parent
    verify = ssl.create_default_context(cafile=folder / "cert.pem")
    url = guarded.url.replace("http://", "https://")
    with httpx.Client(base_url=url, verify=verify, timeout=HANG_S) as client:
        yield client


def test_an_image_over_tls_with_the_key_in_the_path(guarded: Running, http: httpx.Client) -> None:
    assert "Ready: https://127.0.0.1:" in guarded.output.read_text()
    assert http.get("/ping").status_code == 401
    assert http.get("/readyz").status_code == 200
    fields = {"prompt": "an unspeakable secret", "num_inference_steps": 2}
    answer = http.post("/k/second-key/txt2img", data=fields, headers={"X-Request-Id": "request-1"})
    assert answer.status_code == 200 and answer.json()["images"] and answer.headers["x-request-id"] == "request-1"


def test_the_log_is_json_without_prompt_or_key(guarded: Running, http: httpx.Client) -> None:
    assert http.post("/txt2img", data={"prompt": "x", "seed": "no number"}, headers={"X-API-Key": "first-key",
                     "X-Request-Id": "request-2"}).status_code == 400  # fmt: skip
    (log,) = guarded.output.parent.glob("sd-server-*/logs/proxy.out")
    # a request's line is written after its answer
    wait_for(lambda: re.search(r'"request_id": "request-2".*"status": 400', log.read_text()))
    text = log.read_text()
    line = '"request_id": "request-1", "method": "POST", "route": "/txt2img", "dialect": "native", "status": 200'
    assert line in text
    everything = "".join(file.read_text(errors="replace") for file in log.parent.iterdir() if file.is_file())
    assert "unspeakable" not in everything and "second-key" not in everything


def test_the_figures_of_proxy_worker_and_torchserve(http: httpx.Client) -> None:
    text = http.get("/metrics", headers={"Authorization": "Bearer first-key"}).text
    assert re.search(r'sd_requests_total{dialect="native",route="/txt2img",status="200"} [1-9]', text)
    assert re.search(r'sd_stage_seconds_total{archive="stable-diffusion",stage="unet"} [0-9.]+', text)
    assert all(f'stage="{stage}"' in text for stage in ("parse", "text", "vae", "checker", "encode"))
    assert "ts_inference_requests_total" in text


def test_torchserve_listens_on_loopback_alone(guarded: Running) -> None:
    outside = set()
    for process in [psutil.Process(guarded.process.pid), *guarded.process.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                address = connection.laddr.ip.removeprefix("::ffff:")
                if not address.startswith("127.") and address != "::1":
                    outside.add(connection.laddr.port)
    assert outside == {int(guarded.url.rpartition(":")[2])}  # the proxy's


def test_it_does_not_start_on_all_addresses_without_a_key() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "server.py", "--host", "0.0.0.0", "--port", port]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 1 and "set an API key" in done.stderr
