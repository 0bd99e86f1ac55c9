"""The proxy as a process that is told to stop, in front of a TorchServe that a thread plays."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from launch.machine import free_ports
from tests.support.paths import HOME
from tests.support.running import HANG_S, wait_for

RESULT = b'{"result": {"status": "success", "images": []}}\n'


class TorchServe(BaseHTTPRequestHandler):
    """Workers that are ready, and predictions that take until `generated` is set."""

    generated: threading.Event

    def do_GET(self) -> None:
        self._answer(b'[{"workers": [{"status": "READY"}]}]')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.generated.wait(HANG_S)
        self._answer(RESULT)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def torchserve() -> Iterator[str]:
    TorchServe.generated = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), TorchServe) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        TorchServe.generated.set()
        served.shutdown()


def status(url: str) -> int:
    try:
        return httpx.get(url, timeout=10).status_code
    except httpx.TransportError:
        return 0


def ask(url: str) -> httpx.Response | None:
    """The answer to a request that gives up after a second; nothing is generated within it."""
    try:
        return httpx.post(f"{url}/txt2img", timeout=1)
    except httpx.TimeoutException:
        return None


def test_it_leaves_the_balancer_before_it_lets_nothing_in(torchserve: str) -> None:
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    variables = {"SD_PORT": str(port), "SD_INFERENCE_URL": torchserve, "SD_MANAGEMENT_URL": torchserve}
    variables |= {"SD_LEAVE_S": "10", "SD_DRAIN_S": "60"}
    proxy = subprocess.Popen([sys.executable, "-m", "proxy"], cwd=HOME, env=os.environ | variables)
    try:
        with ThreadPoolExecutor() as pool, httpx.Client(timeout=HANG_S) as client:
            wait_for(lambda: status(f"{url}/readyz") == 200)
            proxy.send_signal(signal.SIGTERM)
            wait_for(lambda: status(f"{url}/readyz") == 503)  # nothing is in flight, and yet it stays
            assert status(f"{url}/healthz") == 200
            begun_while_it_leaves = pool.submit(client.post, f"{url}/txt2img", data={"prompt": "x"})
            refused = next(answer for answer in iter(lambda: ask(url), 0) if answer)
            assert refused.status_code == 503 and refused.headers["connection"] == "close"
            TorchServe.generated.set()
            assert begun_while_it_leaves.result().status_code == 200
            assert proxy.wait(HANG_S) == -signal.SIGTERM
    finally:
        proxy.kill()
        proxy.wait()
