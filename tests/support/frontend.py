"""What TorchServe's frontend does with a handler, in one process: the calls of continuous batching."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from handlers.stable_diffusion import CombinedHandler
from tests.support.running import HANG_S


class Context:
    """TorchServe's context, as far as the handler sees it."""

    def __init__(self, **handler: Any) -> None:
        self.model_yaml_config = {"handler": {"engine": "torch"} | handler}
        self.model_name = "stable-diffusion"
        self.system_properties = {"gpu_id": None}
        self.stopping_criteria: list[Any] = []
        self.requests: list[tuple[str, dict[str, str]]] = []

    def get_request_id(self, i: int) -> str:
        return self.requests[i][0]

    def get_request_header(self, i: int, name: str) -> str | None:
        return self.requests[i][1].get(name)

    def set_response_content_type(self, i: int, value: str) -> None:
        assert value == "application/x-ndjson"


class Frontend:
    """What TorchServe's continuous batching does: all open requests at every call, a request's data only once."""

    def __init__(self, handler: CombinedHandler) -> None:
        self.handler = handler
        self.context = Context()
        self.open: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self.lines: dict[str, list[bytes]] = {}
        self.order: list[str] = []  # in which requests ended
        self._count = 0

    def send(self, task: str = "txt2img", headers: dict[str, str] | None = None, **fields: Any) -> str:
        self._count += 1
        name = f"request-{self._count}"
        data = {key: str(value).encode() for key, value in ({"prompt": "a red apple"} | fields).items()}
        self.open[name] = ({"X-Task": task} | (headers or {}), data)
        self.lines[name] = []
        return name

    def leave(self, name: str) -> None:
        del self.open[name]

    def tick(self) -> None:
        names = list(self.open)
        self.context.requests = [(name, self.open[name][0]) for name in names]
        data = [self.open[name][1] if not self.lines[name] else {} for name in names]
        replies = self.handler.handle(data, self.context)
        assert len(replies) == len(names)
        results = 0
        for i, (name, reply) in enumerate(zip(names, replies, strict=True)):
            verdict = self.context.stopping_criteria[i](reply)
            assert reply.endswith(b"\n")
            assert not (verdict is True and not self.lines[name]), "TorchServe would write no HTTP head"
            self.lines[name].append(reply)
            results += b'"result"' in reply
            assert verdict is not False or b'"result"' not in reply, "its last line comes with the last chunk"
            if verdict is not False:
                self.order.append(name)
                del self.open[name]
        assert results <= 1, "one result a reply"

    def run(self) -> None:
        self.run_until(lambda: not self.open)

    def run_until(self, condition: Callable[[], Any]) -> None:
        give_up_at = time.monotonic() + HANG_S
        while not condition():
            assert time.monotonic() < give_up_at, f"still open: {list(self.open)}"
            self.tick()

    @contextlib.contextmanager
    def engine_held(self) -> Iterator[None]:
        """The engine waits meanwhile, so that what is sent within begins all at once."""
        go_on = threading.Event()
        self.handler.engine.call(go_on.wait)
        try:
            yield
            self.tick()
            for generation in self.handler.generations.values():
                generation.wait_until_parsed(HANG_S)
        finally:
            go_on.set()

    def messages(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for reply in self.lines[name] for line in reply.splitlines() if line]

    def result(self, name: str) -> dict[str, Any]:
        result: dict[str, Any] = self.messages(name)[-1]["result"]
        return result
