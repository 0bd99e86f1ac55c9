"""The ASGI application."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from handlers.catalogue import Catalogue
from proxy.access import Access, Cors
from proxy.admission import Admission
from proxy.bodies import Bodies
from proxy.custom_models import CustomModels
from proxy.dialects.a1111_options import Options
from proxy.dialects.a1111_styles import Styles
from proxy.dialects.failures import refused
from proxy.errors import Failure
from proxy.frontend_failures import READY
from proxy.jobs import Jobs
from proxy.kept import Kept
from proxy.loading import Loading
from proxy.paths import Paths
from proxy.routes import routes
from proxy.served import Served
from proxy.settings import Settings, listed
from proxy.shutdown import Drain
from proxy.telemetry import Counts, Telemetry
from proxy.upstream import Upstream

logger = logging.getLogger(__name__)


def create_app(settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> Starlette:
    """The app for `settings`. `transport` replaces the network in tests."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        upstream = Upstream(
            settings.inference_url, settings.management_url, settings.metrics_url, settings.archive_of_task(),
            transport, settings.restart_s,
        )  # fmt: skip
        app.state.upstream = upstream
        app.state.loading = loading = Loading(upstream, catalogue, settings.most_models(), settings.idle_unload * 60)
        app.state.served = Served(loading, upstream, app.state.custom_models)
        for task, state in (await loading.states()).items():
            if state != READY:
                logger.warning("%s: %s", task, state)
        unloading = asyncio.create_task(loading.unload_idle())
        app.state.jobs = jobs = Jobs(app.state.kept, app.state.drain, counts, settings.node)
        yield
        await jobs.aclose()
        unloading.cancel()
        await upstream.aclose()

    counts, catalogue = Counts(), Catalogue(Path(settings.catalogue))
    # browsers name an origin in small letters and without a slash
    origins = [origin.lower().rstrip("/") for origin in listed(settings.allowed_origins)]
    hosts = [settings.host, *listed(settings.allowed_hosts)]
    middleware = [
        Middleware(Paths),
        Middleware(Telemetry, counts),
        Middleware(Cors, origins),
        Middleware(Access, settings.api_keys(), hosts, origins),
    ]
    app = Starlette(
        routes=routes,
        middleware=middleware,
        lifespan=lifespan,
        exception_handlers={
            Failure: _failure,
            HTTPException: _http_exception,
            ClientDisconnect: _gone,
            Exception: _fault,
        },
    )
    app.router.redirect_slashes = False  # a redirect would have an empty body
    app.state.settings = settings
    app.state.custom_models = CustomModels(Path(settings.config), catalogue)
    app.state.counts = counts
    app.state.drain = Drain()
    app.state.admission = Admission(settings.max_open, settings.max_waiting, settings.max_per_client, counts)
    app.state.options = Options()
    app.state.styles = Styles(Path(settings.config).with_name("styles.csv"))
    app.state.kept = Kept(settings.max_kept, settings.max_kept_bytes, settings.node)
    app.state.bodies = Bodies(settings.max_body_bytes, settings.max_bytes_in_flight)
    return app


async def _failure(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, Failure)
    return refused(request, failure)


async def _gone(request: Request, _: Exception) -> Response:
    """The client disconnected before its request was complete: nobody reads this."""
    return Response(status_code=499)


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the contract's form."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:200]
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # several routes may share a path, and Starlette names the methods of the first
        there = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = sorted({method for route in there for method in route.methods or ()} - {"HEAD"})
        headers["Allow"] = ", ".join(methods)
        response = Failure(405, f"{path} takes {' or '.join(methods)}, not {request.method}.")
    else:
        response = Failure(error.status_code, f"There is no {path} here: /docs lists every address of the API.")
    answer = refused(request, response)
    answer.headers.update(headers)
    return answer


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of the server: the log has the trace, the client gets a sentence."""
    answer = refused(request, Failure(500, "This is a fault of the server; its log has the cause."))
    # this answer bypasses Telemetry, which adds the id to all others
    answer.headers["X-Request-Id"] = request.state.request_id.decode()
    return answer
