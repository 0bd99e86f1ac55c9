"""Who may come in: API keys, and what a browser may be made to do by a foreign page."""

import hmac
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.errors import Failure

# what says nothing but yes or no, since whoever probes has no key; and the page, which asks for one
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
OPEN_FILES = "/static/"  # what the page is made of
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_KEY_ALONE = re.compile(r"/k/([^/]+)")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Access:
    """Lets requests in that name this server and, where keys are set, bring one of them.

    A key comes as `Authorization: Bearer …`, as `X-API-Key`, or as a path prefix `/k/<key>` for clients that can send
    no header, as the plugin. A browser says in `Origin` which page has sent a request, and no page but this server's
    own and the allowed ones may; `Host` must be an address or a known name, since a foreign page's name may be made to
    point here (DNS rebinding).

    Args:
        keys: any of them opens; none: open to all.
        hosts: names that this server is known by, besides addresses and the local ones; `*` is any.
        origins: pages that may send requests, as `https://example.com`.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = {host.lower() for host in hosts}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "GET" and (alone := _KEY_ALONE.fullmatch(scope["path"])):
                # whoever opens the plugin's address in a browser; the page's own addresses are relative
                await RedirectResponse(quote(alone[1], safe="") + "/")(scope, receive, send)
                return
            try:
                client = self._check(Request(scope), _take_key(scope))
            except Failure as failure:
                await failure.response()(scope, receive, send)
                return
            scope["state"] = {**scope.get("state", {}), "client": client}
        if scope["type"] in ("http", "lifespan"):  # nothing else is served
            await self._app(scope, receive, send)

    def _check(self, request: Request, key: bytes) -> str:
        """Whose request it is: a key's, where there are several, else an address's. Raises Failure 400, 401 or 403."""
        host = request.headers.get("host")
        if host is not None and not self._knows(host):  # browsers always send one
            raise Failure(
                400, f"This server does not go by the name {host[:100]!r}: use its address, or set SD_ALLOWED_HOSTS."
            )
        origin = request.headers.get("origin")
        if origin is not None and origin not in self._origins and origin.partition("://")[2] != host:
            raise Failure(403, f"Pages of {origin[:100]!r} may not use this server: see SD_ALLOWED_ORIGINS.")
        # the scope's path: request.url is put together with what the client sends as Host
        path, given = request.scope["path"], _key_in_headers(request) or key
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FILES)
        if self._keys and not is_open and not self._opens(given):
            raise Failure(
                401, "This server wants its API key: as 'Authorization: Bearer KEY', as X-API-Key, or as /k/KEY before "
                "the path.", headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if len(self._keys) > 1:
            return given.decode("latin-1")
        return request.client.host if request.client else ""

    def _knows(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if not match:
            return False
        name = match[1].strip("[]").lower()
        if name in LOCAL_NAMES or name in self._hosts or "*" in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _opens(self, given: bytes) -> bool:
        # every key is compared, in constant time, so that the time says nothing about any of them
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


def is_loopback(host: str) -> bool:
    """Whether what listens there can be reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _key_in_headers(request: Request) -> bytes:
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    key = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    return bytes(key, "latin-1")


def _take_key(scope: Scope) -> bytes:
    """The key of `/k/<key>` before the path. Takes it off the path, so that nobody behind this sees or logs it."""
    parts = scope["path"].split("/", 3)
    if len(parts) < 4 or parts[:2] != ["", "k"]:
        return b""
    scope["path"] = "/" + parts[3]
    scope["raw_path"] = scope["path"].encode()
    return bytes(parts[2], "utf-8")
