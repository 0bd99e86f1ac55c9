"""Access: API keys, and protection from foreign pages in the user's browser."""

import base64
import hmac
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.dialects.failures import refused
from proxy.errors import Failure

# health checks, which have no key and learn only yes or no; and the page, which asks for the key
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz"})
# the page's own files; and images by addresses that nobody can guess, which programs fetch that have no key
OPEN_FOLDERS = ("/static/", "/v1/images/files/")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")
_KEY_ALONE = re.compile(r"/k/([^/]+)")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Cors(CORSMiddleware):
    """Tells browsers that pages of `origins` may use this server, and pages of others why not."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["*"],  # a wrong one gets the sentence that names the right ones
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[
                "Retry-After", "X-Request-Id", "Location", "Preference-Applied", "openai-poll-after-ms",
                "x-should-retry",
            ],
        )  # fmt: skip

    def preflight_response(self, request_headers: Headers) -> Response:
        origin = request_headers["origin"]
        if self.is_allowed_origin(origin):
            return super().preflight_response(request_headers)
        if _is_own(origin, request_headers.get("host")):
            return Cors(self.app, [origin]).preflight_response(request_headers)
        return _foreign(origin).response()


class Access:
    """Admits requests that name this server and, if keys are set, carry one of them.

    A key comes as `Authorization: Bearer …`, as the password of `Basic`, as `X-API-Key` or `api-key`, or as a path
    prefix `/k/<key>` for clients that cannot send a header, such as the plugin. A browser names the page that sends a
    request in `Origin`; only this server's own page and the allowed ones may send. `Host` must be an address or a known
    name, because a foreign page can make its own name point here (DNS rebinding).

    Args:
        keys: any of them gives access; without keys, access is open.
        hosts: names of this server, besides addresses and the local names; `*` is any.
        origins: pages that may send requests, as `https://example.com`; `*` is any, `null` pages without an origin.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str], hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = {host.lower() for host in hosts}
        self._origins = set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "GET" and (alone := _KEY_ALONE.fullmatch(scope["path"])):
                # somebody opens the plugin's address in a browser; the page's own links are relative and need the slash
                await RedirectResponse(quote(alone[1], safe="") + "/")(scope, receive, send)
                return
            key, prefix = _take_key(scope)
            request = Request(scope)
            try:
                client, owner = self._check(request, key)
            except Failure as failure:
                await refused(request, failure)(scope, receive, send)
                return
            scope["state"] = {**scope.get("state", {}), "client": client, "owner": owner, "prefix": prefix}
        if scope["type"] in ("http", "lifespan"):  # websockets are not served
            await self._app(scope, receive, send)

    def _check(self, request: Request, key: bytes) -> tuple[str, str]:
        """The client: its key if there are several, otherwise its address; and whose jobs it sees: its key's, if any.

        Raises Failure 400, 401 or 403.
        """
        host = request.headers.get("host")
        if host is not None and not self._knows(host):  # browsers always send it
            raise Failure(
                400,
                f"This server does not know the name {host[:100]!r}: use its address, or add it to SD_ALLOWED_HOSTS.",
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._allows(origin) and not _is_own(origin, host):
            raise _foreign(origin)
        # the scope's path, since request.url contains the Host that the client sends
        path, given = request.scope["path"], _key_in_headers(request) or key
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
        if self._keys and not is_open and not self._opens(given):
            problem = "This API key is not known here" if given else "This server requires an API key"
            raise Failure(
                401, f"{problem}: send one as 'Authorization: Bearer KEY', as X-API-Key, or as /k/KEY before the path.",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        owner = address = request.client.host if request.client else ""
        if self._keys:
            owner = given.decode("latin-1")
        return (owner if len(self._keys) > 1 else address), owner

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

    def _allows(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins

    def _opens(self, given: bytes) -> bool:
        # every key is compared, in constant time, so that the time says nothing about any of them
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_own(origin: str, host: str | None) -> bool:
    """Whether it is a page of this server; behind a proxy with HTTPS, its scheme is another one than this server's."""
    return origin.partition("://")[2] == host


def _foreign(origin: str) -> Failure:
    return Failure(403, f"Pages of {origin[:100]!r} may not use this server: add them to SD_ALLOWED_ORIGINS.")


def _key_in_headers(request: Request) -> bytes:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bytes(given.strip(), "latin-1")
    # clients of AUTOMATIC1111's API send an empty `Basic` where nobody has set a password
    key = _password(given) if scheme.lower() == "basic" else b""
    return key or bytes(request.headers.get("x-api-key", "") or request.headers.get("api-key", ""), "latin-1")


def _password(given: str) -> bytes:
    """The password of `Basic`'s base64 (RFC 7617); empty for what is none."""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def _take_key(scope: Scope) -> tuple[bytes, str]:
    """The key of `/k/<key>` before the path, and that prefix, which the addresses in its answers must have too.

    Removes it from the path, so that no later part logs it.
    """
    parts = scope["path"].split("/", 3)
    if len(parts) < 4 or parts[:2] != ["", "k"]:
        return b"", ""
    scope["path"] = "/" + parts[3]
    scope["raw_path"] = scope["path"].encode()
    return bytes(parts[2], "utf-8"), f"/k/{quote(parts[2], safe='')}"
