"""A TorchServe that is played, with a main model and others that are loaded by request."""

import json

import anyio
import httpx

from handlers.catalogue import CatalogueEntry
from handlers.wire import COUNT, DESCRIBE, TASK_HEADER
from tests.support.torchserve import RESULT, chunks, registered

DREAM, INK = CatalogueEntry("dream", "Dream Shaper", weight_bytes=4), CatalogueEntry("ink", "ink", weight_bytes=2)
ALL = {"archives": "txt2img=all,img2img=all,masking=all"}


class TorchServe:
    """It has workers by archive; `predictions` are what it was asked for. `broken` archives do not load."""

    def __init__(self) -> None:
        self.workers = {"all": 1}
        self.predictions: list[tuple[str, str, bytes]] = []
        self.held: dict[str, anyio.Event] = {}
        self.broken: set[str] = set()
        self.most = 0  # workers at a time, so far

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if request.url.port == 8081:
            return self.manage(request, name)
        if name not in self.workers:
            return httpx.Response(404)
        assert self.workers[name], "TorchServe would let it wait for ever"
        if request.headers[TASK_HEADER] == DESCRIBE:
            described = {"model": "main" if name == "all" else name, "tasks": ["txt2img"], "defaults": {}}
            line = json.dumps({"result": {"models": [described]}}).encode() + b"\n"
            return httpx.Response(200, content=chunks([line]))
        if request.headers[TASK_HEADER] == COUNT:
            counted = {"status": "success", "prompt": [3], "negative_prompt": [0]}
            return httpx.Response(200, content=chunks([json.dumps({"result": counted}).encode() + b"\n"]))
        self.predictions.append((name, request.headers[TASK_HEADER], await request.aread()))
        if name in self.held:
            await self.held[name].wait()
        assert self.workers[name], "its client would hang"
        return httpx.Response(200, content=chunks([RESULT]))

    def manage(self, request: httpx.Request, name: str) -> httpx.Response:
        if request.method == "GET" and request.url.path == "/models":
            return registered(self.workers)
        if request.method == "GET":
            workers = [{"status": "READY"}] * self.workers.get(name, 0)
            return httpx.Response(200 if name in self.workers else 404, json=[{"workers": workers}])
        if request.method == "DELETE":
            self.workers.pop(name)
            return httpx.Response(200)
        query = dict(request.url.params)
        if request.method == "PUT" and name not in self.workers:
            return httpx.Response(404, json={})
        name = query.get("model_name", name)
        self.workers[name] = int(query.get("initial_workers") or query["min_worker"])
        self.most = max(self.most, sum(self.workers.values()))
        return httpx.Response(500 if name in self.broken and self.workers[name] else 200, json={})
