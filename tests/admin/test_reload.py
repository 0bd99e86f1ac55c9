"""The reload against a stand-in for TorchServe's two APIs; tests/faults/test_reload_under_load.py has the real one."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml

from admin import reload as module
from admin.archive import build
from admin.management import Management
from admin.reload import listing, next_version
from admin.running_server import ReloadError, RunningServer, Target, find_target


class TorchServe:
    """Registered versions of archives, in memory; `calls` are the requests in their order."""

    def __init__(self, open_requests: int = 0) -> None:
        self.versions = {"txt2img": ["1.0"], "stable-diffusion": ["1.0"]}
        self.default = {"txt2img": "1.0", "stable-diffusion": "1.0"}
        self.files = {("txt2img", "1.0"): "txt2img.mar", ("stable-diffusion", "1.0"): "stable-diffusion.mar"}
        self.open_requests = open_requests
        self.worker = "READY"
        self.calls: list[str] = []
        self.refuse: Callable[[str], str | None] = lambda call: None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        call = f"{request.method} {request.url.path}"
        task = request.headers.get("X-Task")
        self.calls.append(f"{call} {task}" if task else call)
        if reason := self.refuse(self.calls[-1]):
            return httpx.Response(500, json={"code": 500, "type": "X", "message": reason})
        parts = request.url.path.strip("/").split("/")
        if parts[0] == "predictions":
            if task == "describe":
                self.open_requests = max(0, self.open_requests - 1)
                return self._line({"result": {"models": [{"activity": {"open_requests": self.open_requests}}]}})
            return self._line({"result": {"status": "success", "images": []}})
        if parts == ["models"] and request.method == "GET":
            return httpx.Response(200, json={"models": [{"modelName": name} for name in self.versions]})
        if parts == ["models"]:
            name, file = request.url.params["model_name"], request.url.params["url"]
            version = Path(file).stem.removeprefix(f"{name}-")
            self.versions[name].append(version)
            self.files[name, version] = file
        elif request.method == "GET" and parts[-1] == "all":
            return httpx.Response(200, json=[self._described(parts[1], v) for v in self.versions[parts[1]]])
        elif request.method == "GET":
            return httpx.Response(200, json=[self._described(parts[1], self.default[parts[1]])])
        elif parts[-1] == "set-default":
            self.default[parts[1]] = parts[2]
        elif request.method == "DELETE":
            self.versions[parts[1]].remove(parts[2])
        return httpx.Response(200, json={"status": "done"})

    def _line(self, line: dict[str, object]) -> httpx.Response:
        return httpx.Response(200, content=b"\n" + json.dumps(line).encode() + b"\n")

    def _described(self, name: str, version: str) -> dict[str, object]:
        workers = [{"status": self.worker}] if self.worker else []
        return {"modelVersion": version, "modelUrl": self.files[name, version], "workers": workers}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    build("txt2img", tmp_path, {"model": "/some/model", "device": "cpu"})
    build("stable-diffusion", tmp_path, {})
    return tmp_path


def reload(torchserve: TorchServe, store: Path, name: str = "txt2img", **changes: str) -> str:
    target = Target("http://management", "http://inference", store)
    management = Management(target, httpx.MockTransport(torchserve))
    return module.reload(name, target, changes, management, lambda text: None)


def settings_of(archive: Path) -> dict[str, object]:
    with zipfile.ZipFile(archive) as opened:
        settings: dict[str, object] = yaml.safe_load(opened.read("model-config.yaml"))["handler"]
    return settings


def test_the_new_version_takes_over_once_it_has_generated_and_the_old_one_is_idle(store: Path) -> None:
    torchserve = TorchServe(open_requests=3)
    assert reload(torchserve, store, dtype="bfloat16") == "2.0"
    assert torchserve.calls == [
        "GET /models/txt2img",
        "GET /models/txt2img/all",
        "POST /models",
        "POST /predictions/txt2img/2.0 txt2img",
        "PUT /models/txt2img/2.0/set-default",
        "GET /models/txt2img/all",
        *["POST /predictions/txt2img/1.0 describe"] * 3,
        "DELETE /models/txt2img/1.0",
    ]
    assert torchserve.versions["txt2img"] == ["2.0"]
    # the settings stay but for what was changed, and the next start serves the new version
    assert sorted(file.name for file in store.glob("*.mar")) == ["stable-diffusion.mar", "txt2img.mar"]
    settings = settings_of(store / "txt2img.mar")
    assert (settings["model"], settings["device"], settings["dtype"]) == ("/some/model", "cpu", "bfloat16")


def test_a_second_reload_follows_the_first(store: Path) -> None:
    torchserve = TorchServe()
    assert [reload(torchserve, store, model=f"/model/{i}") for i in range(3)] == ["2.0", "3.0", "4.0"]
    assert settings_of(store / "txt2img.mar")["model"] == "/model/2"


def test_the_combined_archive_generates_with_each_of_its_tasks(store: Path) -> None:
    torchserve = TorchServe()
    reload(torchserve, store, "stable-diffusion")
    generated = [call.split()[-1] for call in torchserve.calls if "stable-diffusion/2.0 " in call]
    assert generated == ["txt2img", "img2img", "masking"]


@pytest.mark.parametrize(
    ("refused", "unregistered"),
    [
        ("POST /models", []),
        ("POST /predictions/txt2img/2.0 txt2img", ["2.0"]),
        ("PUT /models/txt2img/2.0/set-default", ["2.0"]),
    ],
)
def test_the_old_version_stays_where_the_new_one_fails(store: Path, refused: str, unregistered: list[str]) -> None:
    torchserve = TorchServe()
    torchserve.refuse = lambda call: "no memory" if call == refused else None
    with pytest.raises(ReloadError, match=r"txt2img 1\.0 still serves\..*no memory"):
        reload(torchserve, store)
    assert torchserve.versions["txt2img"] == ["1.0"] and torchserve.default["txt2img"] == "1.0"
    deleted = [call.rpartition("/")[2] for call in torchserve.calls if call.startswith("DELETE")]
    assert deleted == unregistered
    assert sorted(file.name for file in store.glob("*.mar")) == ["stable-diffusion.mar", "txt2img.mar"]


def test_an_old_version_that_will_not_go_is_said_so(store: Path) -> None:
    torchserve = TorchServe()
    torchserve.refuse = lambda call: "stuck" if call.startswith("DELETE") else None
    with pytest.raises(ReloadError, match=r"txt2img 2\.0 serves, but 1\.0 is still there.*stuck"):
        reload(torchserve, store)


def test_an_image_that_fails_counts_as_a_failure(store: Path) -> None:
    torchserve = TorchServe()
    failed = {"error": {"status": 500, "message": "The image could not be generated."}}
    torchserve._line = lambda line: httpx.Response(200, content=json.dumps(failed).encode())  # type: ignore[method-assign]
    with pytest.raises(ReloadError, match="could not be generated"):
        reload(torchserve, store)
    assert torchserve.versions["txt2img"] == ["1.0"]


@pytest.mark.parametrize("answer", [b'\n{"code": 507, "type": "X", "message": "Worker died."}\n', b"\n\n", b""])
def test_a_worker_that_stops_before_the_image_counts_as_a_failure(store: Path, answer: bytes) -> None:
    torchserve = TorchServe()
    torchserve._line = lambda line: httpx.Response(200, content=answer)  # type: ignore[method-assign]
    with pytest.raises(ReloadError, match=r"txt2img 1\.0 still serves\. txt2img 2\.0 gives no result"):
        reload(torchserve, store)
    assert torchserve.versions["txt2img"] == ["1.0"]


def test_a_server_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    target = Target("http://management", "http://inference", tmp_path)
    with pytest.raises(ReloadError, match="does not answer at http://management"):
        Management(target, httpx.MockTransport(refuse)).models()


def test_an_archive_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "txt2img.mar").write_bytes(b"no zip")
    with pytest.raises(ReloadError, match="not an archive of this server"):
        reload(TorchServe(), tmp_path)


def test_the_list(tmp_path: Path) -> None:
    torchserve = TorchServe()
    target = Target("http://management", "http://inference", tmp_path)
    management = Management(target, httpx.MockTransport(torchserve))
    assert listing(management) == "stable-diffusion 1.0 (default): READY\ntxt2img 1.0 (default): READY"
    torchserve.worker = ""
    assert "txt2img 1.0 (default): no worker" in listing(management)


def test_versions_count_up() -> None:
    assert next_version(["1.0"]) == "2.0"
    assert next_version(["1.1", "10.0", "9.0"]) == "11.0"


def test_the_running_server_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    for name in ("SD_MANAGEMENT_URL", "SD_INFERENCE_URL", "SD_MODEL_STORE"):
        monkeypatch.delenv(name, raising=False)
    assert find_target(None).management_url == "http://127.0.0.1:8081"
    with pytest.raises(ReloadError, match=r"No server\.py runs on port 1337"):
        find_target(1337)

    def runs(port: int, pid: int) -> None:
        folder = tmp_path / f"sd-server-{port}"
        folder.mkdir()
        store = str(folder / "store")
        RunningServer(pid, port, f"http://m{port}", f"http://i{port}", f"http://x{port}", store).write(folder)

    runs(1, 2**22 + 1)  # its process is gone
    for name, left in (("old", '{"pid": 1, "port": 1337}'), ("cut", "{")):  # by another version, and by a full disk
        (tmp_path / f"sd-server-{name}").mkdir()
        (tmp_path / f"sd-server-{name}" / "server.json").write_text(left)
    runs(1337, os.getpid())
    assert find_target(None) == Target("http://m1337", "http://i1337", tmp_path / "sd-server-1337" / "store")
    runs(1338, os.getpid())
    with pytest.raises(ReloadError, match=r"ports 133[78], 133[78]: choose one with --port"):
        find_target(None)
    assert find_target(1338).management_url == "http://m1338"
