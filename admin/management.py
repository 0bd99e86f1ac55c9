"""TorchServe's management API, as far as replacing archives needs it."""

import json
import time
from typing import Any

import httpx

from admin.running_server import ReloadError, Target
from handlers.wire import DESCRIBE, Failed, RequestHead, Result, read_line

POLL_S = 0.2
PAGE = "100"  # archives, TorchServe's maximum


class Management:
    """The requests of a reload. Each raises ReloadError if TorchServe refuses it."""

    def __init__(self, target: Target, transport: httpx.BaseTransport | None = None) -> None:
        self._target = target
        # a worker that loads a large model answers late; TorchServe's startupTimeout ends one that never answers
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
        """The names of all registered archives."""
        names: list[str] = []
        query: dict[str, str] | None = {"limit": PAGE}
        while query:
            listed = self._call("GET", f"{self._target.management_url}/models", params=query).json()
            names += [model["modelName"] for model in listed["models"]]
            after = listed.get("nextPageToken")
            query = {"limit": PAGE, "next_page_token": after} if after else None
        return names

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
        """The result's JSON. Raises ReloadError for a request that fails, or whose worker stops before its result."""
        url = f"{self._target.inference_url}/predictions/{name}/{version}"
        headers = RequestHead(task, form_type="application/json").headers()
        answer = self._call("POST", url, content=json.dumps(fields), headers=headers)
        try:
            last = read_line(answer.content.strip().rpartition(b"\n")[2])
        except ValueError:  # a line of TorchServe's own
            last = None
        if isinstance(last, Failed):
            raise ReloadError(f"{name} {version} fails: {last.message}")
        if not isinstance(last, Result):
            raise ReloadError(f"{name} {version} gives no result: its worker has stopped.")
        result: dict[str, Any] = json.loads(last.body)
        return result

    def drain(self, name: str, version: str) -> None:
        """Returns when no request is in flight on a version any more.

        A version without a worker, which is unloaded, has none: it would never answer the question.
        """
        if any(described["workers"] for described in self.versions(name) if described["modelVersion"] == version):
            while self.open_requests(name, version):
                time.sleep(POLL_S)

    def open_requests(self, name: str, version: str) -> int:
        """The open requests of a version. The question goes through its queue, so those that wait there come first."""
        described = self.predict(name, version, DESCRIBE, {})
        count: int = described["models"][0]["activity"]["open_requests"]
        return count
