"""What is being generated when the server is told to stop."""

import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.support.running import HANG_S, running, wait_for

pytestmark = pytest.mark.faults

LONG = {"prompt": "a red apple", "num_inference_steps": 250, "num_outputs": 8, "seed": 1}


def test_it_is_finished_and_nothing_new_is_begun(tmp_path: Path, tiny_model: Path) -> None:
    options = ("--model", str(tiny_model))
    with running(tmp_path, *options, SD_DRAIN_S="120") as instance, ThreadPoolExecutor() as pool:
        generated = [pool.submit(instance.post, "txt2img", LONG) for _ in range(2)]
        wait_for(lambda: instance.activity("txt2img")["unet_forwards"] > 15)
        instance.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{instance.url}/ping").status_code == 503)
        refused = instance.post("txt2img", {"prompt": "x"})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
        assert "is being shut down" in refused.json()["message"]
        assert [answer.result().status_code for answer in generated] == [200, 200]
        assert instance.process.wait(HANG_S) == 0
        assert "Finishing the running requests." in instance.output.read_text()


@pytest.mark.parametrize("again", [True, False])
def test_it_is_broken_off_by_a_second_signal_or_by_the_limit(tmp_path: Path, again: bool) -> None:
    limit = "120" if again else "2"
    with running(tmp_path, SD_DRAIN_S=limit) as instance, ThreadPoolExecutor() as pool:
        generated = pool.submit(instance.post, "txt2img", LONG)
        wait_for(lambda: instance.activity("txt2img")["unet_forwards"] > 5)
        workers = instance.workers()
        instance.process.send_signal(signal.SIGTERM)
        if again:
            wait_for(lambda: "Ctrl-C ends them at once" in instance.output.read_text())
            time.sleep(0.5)  # until it listens to signals again
            instance.process.send_signal(signal.SIGINT)
        assert instance.process.wait(HANG_S) == 0
        with contextlib.suppress(httpx.TransportError):
            assert generated.result().status_code == 503
        assert not any(worker.is_running() for worker in workers)
