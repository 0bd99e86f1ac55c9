"""Parts that die or hang while requests run: what the clients get, and that the service is whole again by itself."""

import errno
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.parts import CLIENTS, LONG, inflict
from tests.support.running import HANG_S, Running, proxied, running, wait_for

pytestmark = pytest.mark.faults


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


def test_a_worker_that_hangs_fails_its_clients_at_their_deadline(combined: Running, tmp_path: Path) -> None:
    before = combined.activity("txt2img")["unet_forwards"]
    with proxied(combined, tmp_path, SD_DEADLINE_S="20") as limited, ThreadPoolExecutor(CLIENTS) as pool:
        answers = [pool.submit(ask, limited) for _ in range(CLIENTS)]
        wait_for(lambda: combined.activity("txt2img")["unet_forwards"] > before)
        worker = combined.workers()[0]
        worker.suspend()
        try:
            wait_for(lambda: worker.status() == psutil.STATUS_STOPPED)
            assert {answer.result(timeout=HANG_S) for answer in answers} == {504}
        finally:
            worker.resume()
    assert combined.images("txt2img", num_inference_steps=2)


def test_a_request_that_is_there_at_two_deaths_is_a_sentence(combined: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(combined.post, "txt2img", {"prompt": "x", "num_inference_steps": 250, "num_outputs": 8})
        dead: list[psutil.Process] = []
        for _ in range(2):
            wait_for(lambda: not {*combined.workers()} <= {*dead} and is_whole(combined))
            wait_for(lambda: combined.activity("txt2img")["open_requests"] == 1)
            dead.append(combined.workers()[0])
            inflict(dead[-1], signal.SIGKILL)
        answer = future.result()
    assert answer.status_code == 500 and "retry-after" not in answer.headers
    assert "stopped twice while it had this request" in answer.json()["message"]
    wait_for(lambda: is_whole(combined))
    assert combined.images("txt2img", seed=1, num_inference_steps=2)


def test_a_model_whose_folder_is_gone_serves_on_and_is_whole_again_when_it_is_back(
    tmp_path: Path, tiny_model: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    with running(tmp_path, "--model", str(model), SD_RESTART_S="5") as instance:
        model.rename(tmp_path / "away")
        assert instance.images("txt2img", num_inference_steps=2)  # its files are open
        before = instance.activity("txt2img")["unet_forwards"]
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = [pool.submit(ask, instance) for _ in range(CLIENTS)]
            wait_for(lambda: instance.activity("txt2img")["unet_forwards"] > before)
            instance.workers()[0].kill()
            assert {answer.result(timeout=HANG_S) for answer in answers} == {503}
        wait_for(lambda: not is_whole(instance))
        with ThreadPoolExecutor(CLIENTS) as pool:
            assert {*pool.map(lambda _: ask(instance), range(CLIENTS))} == {503}
        (tmp_path / "away").rename(model)
        wait_for(lambda: is_whole(instance))
        assert instance.images("txt2img", num_inference_steps=2)


def test_a_damaged_archive_is_refused_under_load(combined: Running) -> None:
    before = combined.activity("txt2img")["unet_forwards"]
    store = Path(combined.torchserve["model_store"])
    with ThreadPoolExecutor(CLIENTS) as pool:
        fields = {"prompt": "a house", "num_inference_steps": 250}
        answers = [pool.submit(combined.post, "txt2img", fields) for _ in range(CLIENTS)]
        wait_for(lambda: combined.activity("txt2img")["unet_forwards"] > before)
        for rubbish in (b"rubbish", (store / "stable-diffusion.mar").read_bytes()[:-500], b""):
            (store / "damaged.mar").write_bytes(rubbish)
            refused = httpx.post(
                f"{combined.torchserve['management_url']}/models",
                params={"url": "damaged.mar", "initial_workers": 1, "synchronous": True}, timeout=HANG_S,
            )  # fmt: skip
            assert refused.is_error, refused.text
        assert {answer.result(timeout=HANG_S).status_code for answer in answers} == {200}
    registered = httpx.get(f"{combined.torchserve['management_url']}/models").json()["models"]
    assert [model["modelName"] for model in registered] == ["stable-diffusion"]


@pytest.fixture
def small() -> Iterator[Path]:
    """A folder with a short path: TorchServe's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="sd-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_a_full_disk_fails_no_request(tmp_path: Path, small: Path, tiny_model: Path) -> None:
    # a file system of its own for the server, which others see below /proc
    within = [
        "unshare",
        "-m",
        "--map-root-user",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=32m none {small}; exec "$@"',
        "-",
    ]
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of his own")
    options = ("--model", str(tiny_model))
    with running(tmp_path, *options, within=within, TMPDIR=str(small)) as instance:
        full = Path(f"/proc/{instance.process.pid}/root{small}/full")
        with pytest.raises(OSError) as error, full.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65_536))
        assert error.value.errno == errno.ENOSPC
        with ThreadPoolExecutor(CLIENTS) as pool:
            fields = {"prompt": "a house", "num_inference_steps": 5}
            answers = list(pool.map(lambda _: instance.post("txt2img", fields).status_code, range(5 * CLIENTS)))
        assert answers == [200] * 5 * CLIENTS
        (old,) = instance.workers()
        old.kill()
        os.truncate(full, 0)
        wait_for(lambda: any(worker.pid != old.pid for worker in instance.workers()) and is_whole(instance))
        assert instance.images("txt2img", num_inference_steps=2)
