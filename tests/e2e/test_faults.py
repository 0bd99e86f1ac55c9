"""Parts that die or hang while requests run: what the clients get, and that the service is whole again by itself."""

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.running import Running, running, wait_for

pytestmark = pytest.mark.e2e

LONG = {"prompt": "a house", "num_inference_steps": 250, "num_outputs": 2}
CLIENTS = 4


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("faults")
    with running(folder, "--archives", "combined", SD_DEADLINE_S="20") as instance:
        yield instance


def parts(instance: Running) -> dict[str, psutil.Process]:
    """Those that live."""
    workers = instance.workers()
    found = {"worker": workers[0]} if workers else {}
    for process in instance.process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "java" in Path(process.exe()).name:
                found["java"] = process
            elif process.cmdline()[-2:] == ["-m", "proxy"]:
                found["proxy"] = process
    return found


def ask(instance: Running) -> int:
    """The status of a long request's answer; 0 for a broken connection."""
    try:
        answer = instance.post("txt2img", LONG)
    except httpx.TransportError:
        return 0
    assert answer.json()["status"] == ("success" if answer.status_code == 200 else "failure")
    assert answer.status_code != 503 or int(answer.headers["retry-after"]) > 0
    return answer.status_code


def is_whole(instance: Running) -> bool:
    try:
        return httpx.get(f"{instance.url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize(
    ("part", "clients_get", "said"),
    [
        ("worker", {503}, ""),
        ("java", {503}, "TorchServe died with exit code"),
        ("proxy", {0}, "The proxy died with exit code -9: started again."),
    ],
)
def test_a_part_that_is_killed_under_load_comes_back(
    instance: Running, part: str, clients_get: set[int], said: str
) -> None:
    before = instance.activity("txt2img")["unet_forwards"]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, instance) for _ in range(CLIENTS)]
        wait_for(lambda: instance.activity("txt2img")["unet_forwards"] > before, 60)
        old = parts(instance)
        old[part].send_signal(signal.SIGKILL)
        statuses = {answer.result(timeout=60) for answer in answers}
    assert statuses <= clients_get
    wait_for(lambda: parts(instance).keys() == old.keys() and is_whole(instance), 120)
    assert said in instance.output.read_text()
    assert instance.images("txt2img", num_inference_steps=2)
    if part == "java":
        assert not old["worker"].is_running()  # nobody would end it any more
    assert len(instance.workers()) == 1


def test_a_worker_that_hangs_fails_its_clients_at_their_deadline(instance: Running) -> None:
    before = instance.activity("txt2img")["unet_forwards"]
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, instance) for _ in range(CLIENTS)]
        wait_for(lambda: instance.activity("txt2img")["unet_forwards"] > before, 60)
        worker = instance.workers()[0]
        worker.suspend()
        try:
            assert {answer.result(timeout=30) for answer in answers} == {504}
        finally:
            worker.resume()
    assert instance.images("txt2img", num_inference_steps=2)
