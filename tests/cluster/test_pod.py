"""The pod's two containers as processes of this machine: their commands, variables and probes as the manifest has them.

Not what Kubernetes does around them: the image, users, volumes and limits.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from launch.machine import java_home
from proxy.settings import Settings
from tests.support.paths import HOME
from tests.support.running import HANG_S, wait_for

pytestmark = pytest.mark.cluster

URL = f"http://127.0.0.1:{Settings().port}"
KEY = {"X-API-Key": "secret"}


class Containers:
    """Starts containers of the pod, with `folder` for /tmp, and ends what is left of them."""

    def __init__(self, objects: dict[str, dict[str, Any]], folder: Path) -> None:
        pod = objects["Deployment"]["spec"]["template"]["spec"]
        self.torchserve, self.proxy = *pod["initContainers"], *pod["containers"]
        self._folder = folder
        self._config = objects["ConfigMap"]["data"]
        self._started: list[psutil.Process] = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        image = {"PATH": path, "JAVA_HOME": str(java_home()), "SD_HOME": str(HOME), "SD_HOST": "0.0.0.0"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SD_", "HF_", "PYTHONPATH"))}
        self._image = kept | image | {"TMPDIR": str(folder)}

    def start(self, container: dict[str, Any], **variables: str) -> psutil.Popen:
        environment = dict(self._image)
        for entry in container["env"]:
            if "value" in entry:
                environment[entry["name"]] = self._moved(entry["value"])
            elif "configMapKeyRef" in entry["valueFrom"]:
                environment[entry["name"]] = self._config[entry["valueFrom"]["configMapKeyRef"]["key"]]
        command = [self._moved(argument) for argument in container["args"]]
        with (self._folder / f"{container['name']}.out").open("wb") as log:
            # a group of its own, since tini passes signals to the whole group
            process = psutil.Popen(
                command, cwd=HOME, env=environment | variables, stdout=log, stderr=log, start_new_session=True
            )
        self._started.append(process)
        return process

    def _moved(self, text: str) -> str:
        return text.replace("/tmp/", f"{self._folder}/")

    def passes(self, probe: dict[str, Any]) -> bool:
        """Whether an exec probe does, or an httpGet."""
        if "exec" in probe:
            return subprocess.run(probe["exec"]["command"], env=self._image, capture_output=True).returncode == 0
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(URL + probe["httpGet"]["path"], timeout=probe["timeoutSeconds"]).is_success
        return False

    def end(self) -> None:
        for process in self._started:
            with contextlib.suppress(psutil.NoSuchProcess):
                tree = [process, *process.children(recursive=True)]
                for each in tree:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        each.kill()
                psutil.wait_procs(tree, timeout=10)


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(HOME / "deploy" / "kubernetes" / "overlays" / "cpu")]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_S).stdout
    containers = Containers({entry["kind"]: entry for entry in yaml.safe_load_all(text)}, tmp_path)
    try:
        yield containers
    finally:
        containers.end()


def test_it_starts_in_order_and_finishes_what_it_generates(containers: Containers, tmp_path: Path) -> None:
    torchserve = containers.start(
        containers.torchserve, OMP_NUM_THREADS="2", SD_MODEL=str(HOME / "models" / "embedded")
    )
    wait_for(lambda: containers.passes(containers.torchserve["startupProbe"]) or torchserve.poll() is not None)
    assert torchserve.poll() is None, (tmp_path / "torchserve.out").read_text()
    assert containers.passes(containers.torchserve["livenessProbe"])

    (tmp_path / "keys").write_text("secret\n")
    # longer than a busy machine needs to see that it is not ready
    proxy = containers.start(containers.proxy, SD_API_KEY_FILE=str(tmp_path / "keys"), SD_LEAVE_S="20")
    wait_for(lambda: containers.passes(containers.proxy["readinessProbe"]) or proxy.poll() is not None)
    assert proxy.poll() is None, (tmp_path / "proxy.out").read_text()
    assert containers.passes(containers.proxy["livenessProbe"])
    assert httpx.get(f"{URL}/metrics", headers=KEY | {"Host": "sd-api-server:1337"}).status_code == 200

    def generate(steps: int) -> int:
        fields = {"prompt": "a red apple", "num_inference_steps": steps}
        return httpx.post(f"{URL}/txt2img", data=fields, headers=KEY, timeout=HANG_S).status_code

    with ThreadPoolExecutor() as pool:
        generated = [pool.submit(generate, 250)]
        wait_for(
            lambda: "sd_requests_in_flight 2.0" in httpx.get(f"{URL}/metrics", headers=KEY).text or generated[0].done()
        )
        proxy.send_signal(signal.SIGTERM)
        wait_for(lambda: not containers.passes(containers.proxy["readinessProbe"]))
        generated.append(pool.submit(generate, 1))  # it still lets them in
        assert [answer.result() for answer in generated] == [200, 200]
    proxy.wait(HANG_S)
    assert torchserve.poll() is None
    os.killpg(torchserve.pid, signal.SIGTERM)
    torchserve.wait(HANG_S)
