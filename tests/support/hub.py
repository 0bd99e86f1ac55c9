"""A small server that speaks the hub's download protocol, for huggingface_hub itself to download from.

As https://huggingface.co answers: the model's file list, for each file its size, commit and checksum, its bytes,
and a part of them where a download goes on (Range).
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from handlers.pipelines.sources import ModelSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What a test sets, and what it reads.

    Attributes:
        models: hub id -> the folder with its files.
        refusals: hub id -> the status and X-Error-Code that it is refused with.
        token: what a client has to send, if not None.
        cut: files that break off in the middle, and how many times more.
        fetched: the files whose bytes were sent, and from which byte on.
    """

    url: str = ""
    models: dict[str, Path] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    token: str | None = None
    cut: dict[str, int] = field(default_factory=dict)
    fetched: list[tuple[str, int]] = field(default_factory=list)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            is_api = parts[:2] == ["api", "models"]
            model = "/".join(parts[2:4] if is_api else parts[:2])
            if not is_api and hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._send(401, b"", {"X-Error-Code": "GatedRepo"})  # its file list is open to everybody
            elif model in hub.refusals:
                status, code = hub.refusals[model]
                self._send(status, b"", {"X-Error-Code": code} if code else {})
            elif model not in hub.models:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif is_api and "tree" in parts:
                self._send(200, json.dumps(_tree(hub.models[model])).encode(), {"Content-Type": "application/json"})
            elif is_api:
                names = [file.relative_to(hub.models[model]).as_posix() for file in _files(hub.models[model])]
                about = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})
            else:  # <owner>/<name>/resolve/<revision>/<file>
                self._send_file(hub.models[model] / "/".join(parts[4:]), "/".join(parts[4:]), body)

        def _send_file(self, file: Path, name: str, body: bool) -> None:
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = file.read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if begin:
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            if body:
                hub.fetched.append((name, begin))
            cut = body and hub.cut.get(name, 0) > 0
            if cut:
                hub.cut[name] -= 1
            self._send(206 if begin else 200, data[begin:], headers, body, cut)

        def _send(
            self, status: int, data: bytes, headers: dict[str, str], body: bool = True, cut: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _tree(folder: Path) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": file.relative_to(folder).as_posix(), "size": file.stat().st_size,
         "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
        for file in _files(folder)
    ]  # fmt: skip


MODEL = ModelSource("some/model", "")  # the one of the fixture `served_model`, in tests/conftest.py
