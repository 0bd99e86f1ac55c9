"""Puts a new version of an archive in the place of the running one, without a failed request.

    python -m handlers.reload txt2img [--model …]

builds the new version, registers it beside the old one, draws a first picture with it, makes it the default, waits
until nothing is in flight on the old one, and unregisters that. The old version goes on serving if the new one does
not come up or cannot draw. Everything goes through TorchServe's management API; docs/operations.md has the plain
requests.
"""

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from PIL import Image

from handlers.archive import HOME, MODEL_STORE, build, tasks_of
from handlers.errors import OperatorError
from handlers.fit import find_device
from handlers.sources import download, resolve_model
from handlers.wire import COMBINED, DESCRIBE, TASKS, Failed, RequestHead, Result, read_line

RUN_FILE = "server.json"  # where a server.py that runs says how it is reached
POLL_S = 0.2


class ReloadError(OperatorError):
    """A reload that did not go to its end; the message says what serves now and why."""


@dataclass(frozen=True)
class Target:
    """A running TorchServe: its two addresses, and the model store that it registers archives from."""

    management_url: str
    inference_url: str
    store: Path


class Management:
    """The requests to TorchServe that a reload consists of. Each raises ReloadError where TorchServe refuses."""

    def __init__(self, target: Target, transport: httpx.BaseTransport | None = None) -> None:
        self._target = target
        # a worker that loads a large model answers late; what never answers is ended by TorchServe's startupTimeout
        timeout = httpx.Timeout(10.0, read=1000.0)
        self._client = httpx.Client(timeout=timeout, transport=transport, trust_env=False)

    def _call(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, url, **options)
        except httpx.TransportError as error:
            raise ReloadError(f"TorchServe does not answer at {url}: {error}") from None
        if answer.is_error:
            try:
                reason = answer.json()["message"]
            except (ValueError, LookupError):
                reason = answer.text
            raise ReloadError(f"TorchServe refuses {method} {url}: {reason}")
        return answer

    def models(self) -> list[str]:
        """The names of all that is registered."""
        answer = self._call("GET", f"{self._target.management_url}/models?limit=100")
        return [model["modelName"] for model in answer.json()["models"]]

    def versions(self, name: str) -> list[dict[str, Any]]:
        """TorchServe's description of each version of an archive."""
        described: list[dict[str, Any]] = self._call("GET", f"{self._target.management_url}/models/{name}/all").json()
        return described

    def default_version(self, name: str) -> dict[str, Any]:
        described: dict[str, Any] = self._call("GET", f"{self._target.management_url}/models/{name}").json()[0]
        return described

    def register(self, name: str, file: str) -> None:
        """Returns when its worker has loaded the model."""
        query = {"url": file, "model_name": name, "initial_workers": 1, "synchronous": "true"}
        self._call("POST", f"{self._target.management_url}/models", params=query)

    def set_default(self, name: str, version: str) -> None:
        self._call("PUT", f"{self._target.management_url}/models/{name}/{version}/set-default")

    def unregister(self, name: str, version: str) -> None:
        self._call("DELETE", f"{self._target.management_url}/models/{name}/{version}")

    def predict(self, name: str, version: str, task: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The result's JSON. Raises ReloadError for a request that fails."""
        url = f"{self._target.inference_url}/predictions/{name}/{version}"
        headers = {**RequestHead(task, form_type="application/json").headers()}
        answer = self._call("POST", url, content=json.dumps(fields), headers=headers)
        last = read_line(answer.content.strip().splitlines()[-1])
        if isinstance(last, Failed):
            raise ReloadError(f"{name} {version} fails: {last.message}")
        assert isinstance(last, Result)
        result: dict[str, Any] = json.loads(last.body)
        return result

    def drain(self, name: str, version: str) -> None:
        """Returns when nothing is in flight on a version any more."""
        while self.open_requests(name, version):
            time.sleep(POLL_S)

    def open_requests(self, name: str, version: str) -> int:
        """How many a version still works on. Asked through its queue, so those that wait there are counted first."""
        described = self.predict(name, version, DESCRIBE, {})
        count: int = described["models"][0]["activity"]["open_requests"]
        return count


def reload(
    name: str, target: Target, changes: dict[str, str], management: Management, say: Callable[[str], None]
) -> str:
    """Replaces the default version of the archive `name`. Returns the new version.

    Args:
        changes: handler settings that differ from the running version's.

    Raises ReloadError. The old version then still serves, unless only its own end failed.
    """
    old = management.default_version(name)
    version = next_version([described["modelVersion"] for described in management.versions(name)])
    running = target.store / old["modelUrl"]
    settings = handler_settings(running if running.is_file() else target.store / f"{name}.mar") | changes
    settings.pop("home", None)  # where this archive is built, not where the old one was
    say(f"building {name} {version}")
    archive = build(name, target.store, settings, version)
    try:
        say("starting its worker")
        management.register(name, archive.name)
        try:
            for task in tasks_of(name):
                say(f"drawing a first picture with {task}")
                management.predict(name, version, task, first_request())
            management.set_default(name, version)
        except ReloadError:
            management.unregister(name, version)
            raise
    except ReloadError as error:
        archive.unlink(missing_ok=True)
        raise ReloadError(f"{name} {old['modelVersion']} still serves. {error}") from None
    say(f"waiting for what {old['modelVersion']} still draws")
    management.drain(name, old["modelVersion"])
    try:
        management.unregister(name, old["modelVersion"])
    except ReloadError as error:
        raise ReloadError(f"{name} {version} serves, but {old['modelVersion']} is still there: {error}") from None
    # the name that `--models all` and the next reload expect; TorchServe has read the file and needs it no more
    running.unlink(missing_ok=True)
    archive.replace(target.store / f"{name}.mar")
    return version


def next_version(versions: Sequence[str]) -> str:
    """One more than the highest of TorchServe's version names, `1.0` and the like."""
    return f"{1 + max(int(version.partition('.')[0]) for version in versions)}.0"


def handler_settings(archive: Path) -> dict[str, Any]:
    """What the archive's model-config.yaml says for our handler. Raises ReloadError for another archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            config = yaml.safe_load(opened.read("model-config.yaml"))
        return dict(config["handler"])
    except (OSError, KeyError, TypeError, zipfile.BadZipFile):
        raise ReloadError(f"{archive} is not an archive of ours: build it with python -m handlers.archive.") from None


def first_request() -> dict[str, Any]:
    """The fields of a short request that every task takes."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "PNG")
    picture = base64.b64encode(buffer.getvalue()).decode()
    return {"prompt": "", "num_inference_steps": 2, "strength": 1, "init_image": picture, "mask_image": picture}


def find_target(port: int | None) -> Target:
    """The running server: one that server.py started, else the addresses of config.properties.

    Raises ReloadError if several run and `port`, the one that clients use, does not say which.
    """
    found = []
    for file in Path(tempfile.gettempdir()).glob(f"sd-server-*/{RUN_FILE}"):
        about = json.loads(file.read_text(encoding="utf-8"))
        if psutil.pid_exists(about["pid"]) and port in (None, about["port"]):
            found.append(about)
    if len(found) > 1:
        ports = ", ".join(str(about["port"]) for about in found)
        raise ReloadError(f"Several servers run, on ports {ports}: say which with --port.")
    if found:
        return Target(found[0]["management_url"], found[0]["inference_url"], Path(found[0]["model_store"]))
    if port is not None:
        raise ReloadError(f"No server.py runs on port {port}.")
    return Target(
        os.environ.get("SD_MANAGEMENT_URL", "http://127.0.0.1:8081"),
        os.environ.get("SD_INFERENCE_URL", "http://127.0.0.1:8080"),
        Path(os.environ.get("SD_MODEL_STORE", MODEL_STORE)),
    )


def listing(management: Management) -> str:
    """A line for every version of every archive."""
    lines = []
    for name in sorted(management.models()):
        default = management.default_version(name)["modelVersion"]
        for described in management.versions(name):
            version = described["modelVersion"]
            workers = ", ".join(worker["status"] for worker in described["workers"]) or "no worker"
            lines.append(f"{name} {version}{' (default)' if version == default else ''}: {workers}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m handlers.reload", description="Replaces running archives without a failed request."
    )
    parser.add_argument("archives", nargs="*", metavar="ARCHIVE", help=f"{', '.join(TASKS)} or {COMBINED}")
    parser.add_argument("--list", action="store_true", help="show what is registered")
    parser.add_argument("--model", help="another model: a hub id or the absolute path of a model folder")
    parser.add_argument("--device", help="another device")
    parser.add_argument("--dtype", help="another dtype")
    parser.add_argument("--port", type=int, help="which server, if several run: the port that clients use")
    options = parser.parse_args(argv)
    if bool(options.archives) == options.list:
        parser.error("name the archives to reload, or give --list")
    changes = {key: value for key in ("model", "device", "dtype") if (value := getattr(options, key))}
    try:
        target = find_target(options.port)
        management = Management(target)
        if options.list:
            print(listing(management))
        if options.model:
            source = resolve_model(options.model, HOME, os.environ)
            half = find_device(options.device or "auto", options.dtype or "auto").dtype != "float32"
            download(source, HOME, half)
            changes["model"] = source.location
        for name in options.archives:
            version = reload(name, target, changes, management, lambda text: print(f"  {text}", flush=True))
            print(f"{name} {version} serves.", flush=True)
    except OperatorError as error:
        print(f"Not reloaded: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
