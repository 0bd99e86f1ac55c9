"""`python -m admin.reload` on the real server, under load."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import HOME
from tests.support.running import HANG_S, Running, running, wait_for

pytestmark = pytest.mark.faults

REQUESTS, RELOADS = 200, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reload")


@pytest.fixture(scope="module")
def instance(folder: Path, tiny_model: Path) -> Iterator[Running]:
    with running(folder, "--model", str(tiny_model)) as instance:
        yield instance


def reload(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "admin.reload", *arguments]
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=HANG_S)


def test_reloads_under_load_fail_no_request(instance: Running, folder: Path) -> None:
    failures: list[str] = []
    done = 0
    reloading = True
    lock = threading.Lock()

    def keep_asking() -> None:
        nonlocal done
        while reloading or done < REQUESTS:
            answer = instance.post("txt2img", {"prompt": "a house", "num_inference_steps": 1})
            with lock:
                done += 1
                if answer.status_code != 200:
                    failures.append(answer.text)

    threads = [threading.Thread(target=keep_asking, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(RELOADS):
        reloaded = reload(folder)
        assert reloaded.returncode == 0, reloaded.stderr
        assert f"stable-diffusion {i + 2}.0 serves." in reloaded.stdout
    reloading = False
    for thread in threads:
        thread.join(HANG_S)
    assert not failures and done >= REQUESTS
    # nothing of the old versions is left
    assert reload(folder, "--list").stdout == f"stable-diffusion {RELOADS + 1}.0 (default): READY\n"
    wait_for(lambda: len(instance.workers()) == 1)


def test_a_model_that_does_not_load_leaves_the_old_one_serving(
    instance: Running, folder: Path, tiny_model: Path
) -> None:
    refused = reload(folder, "--model", str(folder))
    assert refused.returncode == 1 and "has no model_index.json" in refused.stderr
    damaged = shutil.copytree(tiny_model, folder / "damaged")
    (damaged / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    failed = reload(folder, "--model", str(damaged))
    assert failed.returncode == 1
    assert f"stable-diffusion {RELOADS + 1}.0 still serves" in failed.stderr
    assert f"stable-diffusion {RELOADS + 1}.0 (default): READY" in reload(folder, "--list").stdout
    assert len(instance.images("txt2img", num_inference_steps=1)) == 1
    wait_for(lambda: len(instance.workers()) == 1)
