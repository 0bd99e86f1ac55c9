"""Paths as plugins join them: `http://host:1337/` + `/ping`, an extra slash at the end, a whole address as target."""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_UNVERSIONED = re.compile(r"((?:/k/[^/]+)?)(/images/)")  # OpenAI's API, for clients whose base address lacks /v1
_ADDRESS = re.compile(r"https?://[^/]*", re.IGNORECASE)  # RFC 9112, 3.2.2: servers must accept a whole address


def normalized(path: str) -> str:
    """The path without an address before it, with single slashes, and without one at its end.

    `/images/…` is `/v1/images/…`.
    A newline stays escaped: a route's pattern ends with `$`, which also matches before a newline at the end.
    """
    path = path.replace("\n", "%0A")
    path = _ADDRESS.sub("", path, count=1) if path[:4].lower() == "http" else path
    path = re.sub("/{2,}", "/", path) or "/"
    path = _UNVERSIONED.sub(r"\1/v1\2", path, count=1) if _UNVERSIONED.match(path) else path
    return path[:-1] if path.endswith("/") and path != "/" and not _is_key(path) else path


def _is_key(path: str) -> bool:
    """Whether it is the page's own address under a key, `/k/KEY/`: the page's relative links need its last slash."""
    return path.startswith("/k/") and path.count("/") == 3


class Paths:
    """Normalizes the path before any other part reads it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = normalized(scope["path"])
            if path != scope["path"]:  # in place: the outermost part, which answers for a fault, has the same scope
                scope["path"], scope["raw_path"] = path, path.encode()
        await self._app(scope, receive, send)
