"""The proxy in front of a TorchServe that is played by a transport."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from proxy.app import create_app
from proxy.settings import Settings

RESULT = b'{"result": {"status": "success", "images": []}}\n'
Respond = Callable[[httpx.Request], httpx.Response]


def management(request: httpx.Request, status: str = "READY") -> httpx.Response:
    return httpx.Response(200, json=[{"modelName": "x", "workers": [{"status": status}]}])


def registered(archives: Iterable[str]) -> httpx.Response:
    """The management API's list."""
    return httpx.Response(200, json={"models": [{"modelName": archive} for archive in archives]})


def serving(*lines: bytes, status: int = 200, worker: str = "READY") -> Respond:
    """A TorchServe whose predictions answer with these lines."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.port == 8081:
            return management(request, worker)
        return httpx.Response(status, content=chunks(lines))

    return respond


async def chunks(lines: Sequence[bytes]) -> AsyncIterator[bytes]:
    for line in lines:
        yield line


@asynccontextmanager
async def client(respond: Respond, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(**settings), httpx.MockTransport(respond))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            yield http
    assert app.state.bodies.bytes_in_flight == 0
