"""A played TorchServe that describes its model and remembers what it was asked for."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx

from handlers.wire import Result, image_entry
from proxy.dialects.forms import read_fields
from tests.support.torchserve import client, management, serving

FILE = b"\x89PNG\r\n\x1a\n\x00\xff"  # no image: the proxy does not look
DATA = base64.b64encode(FILE).decode()
MODEL = {
    "model": "tiny", "tasks": ["txt2img", "img2img", "masking"], "defaults": {"num_inference_steps": 20},
    "limits": {"min_size": 64, "max_size": 1024, "max_num_outputs": 8, "max_num_inference_steps": 50},
    "samplers": ["Euler a", "DPM++ 2M"], "loras": ["ink"],
    "embeddings": ["bad"], "controlnets": ["edges"],
    "upscalers": ["None", "Lanczos", "Nearest", "Latent", "photo_x4"],
}  # fmt: skip
NOTHING = Result(b'{"models": []}').line()
DESCRIPTION = Result(json.dumps({"models": [MODEL]}).encode()).line()


def result(*nsfw: bool, warnings: tuple[str, ...] = (), size: tuple[int, int] = (64, 32)) -> bytes:
    images = [image_entry(DATA, 7 + i, flagged, size) for i, flagged in enumerate(nsfw or (False,))]
    return Result.of_images(images, warnings).line()


class Described:
    """It describes one model, and answers predictions with `lines`; `asked` has the tasks and native fields."""

    def __init__(self, *lines: bytes, status: int = 200) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._lines, self._status = lines or (result(),), status

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.port == 8081:
            return management(request)
        if request.headers["x-task"] == "describe":
            return serving(DESCRIPTION)(request)
        self.asked.append((request.headers["x-task"], read_fields(request.content, request.headers["x-form-type"])))
        return serving(*self._lines, status=self._status)(request)

    @property
    def native(self) -> dict[str, Any]:
        return self.asked[-1][1]


class Held:
    """A TorchServe that answers with `lines`, and then holds each request until `go`; `bodies` has what came."""

    def __init__(self, *lines: bytes, end: bytes | None = None, description: bytes = NOTHING) -> None:
        self.lines, self.description, self.end = lines, description, end or result(warnings=("Doubtful.",))
        self.go, self.closed = anyio.Event(), anyio.Event()
        self.bodies: list[tuple[str, bytes]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.port != 8080:
            return management(request)
        if request.headers["x-task"] == "describe":
            return serving(self.description)(request)
        self.bodies.append((request.headers["x-task"], request.content))
        return httpx.Response(200, content=self._answer())

    async def _answer(self) -> AsyncIterator[bytes]:
        try:
            for line in self.lines:
                yield line
            await self.go.wait()
            yield self.end
        finally:
            self.closed.set()


@asynccontextmanager
async def talking(*lines: bytes, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Described]]:
    served = Described(*lines)
    async with client(served, **settings) as http:
        yield http, served
