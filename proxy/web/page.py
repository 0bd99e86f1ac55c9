"""The page at `/`, the description of the API at `/docs`, and the files that they are made of."""

from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from proxy.errors import Failure

FOLDER = Path(__file__).parent
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
# nothing but the server's own files; pictures also from memory (blob:) and from the events (data:)
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may hold a key
    "Cache-Control": "no-cache",
}


def _file(name: str) -> Response:
    path = FOLDER / name
    if path not in FOLDER.iterdir() or path.suffix not in TYPES:
        raise Failure(404, f"There is no file {name[:100]!r} of the page.")
    return Response(path.read_bytes(), media_type=TYPES[path.suffix], headers=HEADERS)


async def page(request: Request) -> Response:
    return _file("index.html")


async def docs(request: Request) -> Response:
    return _file("docs.html")


async def openapi(request: Request) -> Response:
    return _file("openapi.json")


async def static(request: Request) -> Response:
    return _file(request.path_params["name"])
