"""`torchserve --start` from the repository's root, as config.properties and README.md promise, and its management API
by plain curl."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from admin import archive
from launch.machine import free_ports, java_home, write_config
from tests.support.paths import HOME
from tests.support.running import HANG_S, wait_for

pytestmark = pytest.mark.faults

COMMAND = "torchserve --start --ncs --model-store model_store --models all --ts-config config.properties"
PORTS = free_ports(6)  # instead of those of config.properties, which somebody may use
PREDICTIONS = f"http://127.0.0.1:{PORTS[0]}/predictions"
MODELS = f"http://127.0.0.1:{PORTS[1]}/models"


def curl(*arguments: str) -> tuple[int, str]:
    """Status and body."""
    command = ["curl", "-s", "--max-time", str(HANG_S), "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def prediction(url: str, *arguments: str) -> dict[str, Any]:
    """The last line of a prediction's answer."""
    status, body = curl("-d", "prompt=a red apple", "-d", "num_inference_steps=4", *arguments, url)
    assert status == 200, body
    last: dict[str, Any] = json.loads(body.strip().splitlines()[-1])
    return last


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the three archives, and a version 1.1 of txt2img that differs in one sentence of its code."""
    store = tmp_path_factory.mktemp("model_store")
    archive.main(["--model-store", str(store)])
    archive.main(["txt2img", "--version", "1.1", "--model-store", str(store)])
    staged = store / ".staged" / "txt2img-1.1.mar"
    shutil.move(staged, staged.with_suffix(".original"))
    with zipfile.ZipFile(staged.with_suffix(".original")) as original, zipfile.ZipFile(staged, "w") as changed:
        for name in original.namelist():
            content = original.read(name)
            if name == "handlers/request/reader.py":
                assert b"is missing: send it, even if it is empty." in content
                content = content.replace(
                    b"is missing: send it, even if it is empty.", b"is missing, says version 1.1."
                )
            changed.writestr(name, content)
    staged.with_suffix(".original").unlink()
    return store


@pytest.fixture(scope="module")
def torchserve(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("ts")
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "SD_MODEL", "SD_HOME")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "JAVA_HOME": str(java_home()),
        "TMPDIR": str(folder), "TEMP": str(folder), "LOG_LOCATION": str(folder), "METRICS_LOCATION": str(folder),
    }  # fmt: skip
    config = folder / "config.properties"
    write_config(HOME / config.name, config, PORTS)
    assert COMMAND in (HOME / "README.md").read_text(encoding="utf-8")
    paths = {"model_store": str(store), config.name: str(config)}
    command = [paths.get(part, part) for part in COMMAND.split()]
    subprocess.run(command, cwd=HOME, env=environment, check=True, stdout=subprocess.DEVNULL)
    java = psutil.Process(int((folder / ".model_server.pid").read_text()))
    try:
        wait_for(lambda: all(_ready(task) for task in ("txt2img", "img2img", "masking")))
        yield
    finally:
        processes = [java, *java.children(recursive=True)]
        java.terminate()
        _, alive = psutil.wait_procs(processes, timeout=HANG_S)
        assert not alive


def _ready(model: str) -> bool:
    status, body = curl(f"{MODELS}/{model}")
    return status == 200 and [worker["status"] for worker in json.loads(body)[0]["workers"]] == ["READY"]


def test_an_image_through_torchserve_alone(torchserve: None) -> None:
    image = prediction(f"{PREDICTIONS}/txt2img", "-d", "seed=7")["result"]["images"][0]
    assert image["seed"] == 7 and base64.b64decode(image["base64"]).startswith(b"\x89PNG")


def test_all_its_addresses_are_on_loopback(torchserve: None, store: Path) -> None:
    (java,) = [
        p
        for p in psutil.process_iter()
        if "org.pytorch.serve.ModelServer" in _command(p) and f"{store}" in " ".join(_command(p))
    ]
    listening = [c.laddr for c in java.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert {address.port for address in listening} == set(PORTS[:5])
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_url_is_refused(torchserve: None) -> None:
    for url in ("http://127.0.0.1:9/evil.mar", "https://example.org/evil.mar", "file:///etc/evil.mar"):
        status, body = curl("-X", "POST", f"{MODELS}?url={url}&model_name=evil")
        assert status >= 400 and "evil" not in curl(MODELS)[1], body


def test_a_second_version_replaces_the_first_while_requests_run(torchserve: None, store: Path) -> None:
    assert "send it, even if" in _missing_prompt("txt2img")
    failures: list[Any] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                assert prediction(f"{PREDICTIONS}/txt2img")["result"]["status"] == "success"
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=keep_asking, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    # TorchServe registers by file name in the store itself; what lies there under .staged it does not find
    staged = store / ".staged" / "txt2img-1.1.mar"
    shutil.move(staged, store)
    register = f"{MODELS}?url=txt2img-1.1.mar&model_name=txt2img&initial_workers=1&synchronous=true"
    assert curl("-X", "POST", register)[0] == 200
    assert "says version 1.1" in _missing_prompt("txt2img/1.1")  # the worker runs the archive's copy of the code
    assert curl("-X", "PUT", f"{MODELS}/txt2img/1.1/set-default")[0] == 200
    assert "says version 1.1" in _missing_prompt("txt2img")
    wait_for(lambda: _open_requests("txt2img/1.0") == 0)
    assert curl("-X", "DELETE", f"{MODELS}/txt2img/1.0")[0] == 200
    prediction(f"{PREDICTIONS}/txt2img")
    stop.set()
    for thread in threads:
        thread.join(HANG_S)
    assert not failures
    assert curl(f"{MODELS}/txt2img/1.0")[0] == 404


def test_an_archive_is_scaled_away_and_back(torchserve: None) -> None:
    for workers, status in ((0, []), (1, ["READY"])):
        query = f"min_worker={workers}&max_worker={workers}&synchronous=true"
        assert curl("-X", "PUT", f"{MODELS}/masking?{query}")[0] == 200
        _, body = curl(f"{MODELS}/masking")
        assert [worker["status"] for worker in json.loads(body)[0]["workers"]] == status


def _missing_prompt(model: str) -> str:
    _, body = curl("-d", "seed=1", f"{PREDICTIONS}/{model}")
    message: str = json.loads(body)["error"]["message"]
    return message


def _open_requests(model: str) -> int:
    """What is in flight on a version; asking is a request itself, which is not counted."""
    _, body = curl("-H", "X-Task: describe", "-d", "", f"{PREDICTIONS}/{model}")
    count: int = json.loads(body)["result"]["models"][0]["activity"]["open_requests"]
    return count
