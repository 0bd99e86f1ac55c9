"""The contract's endpoints."""

import asyncio
import math
import time
from itertools import chain

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from handlers.wire import CUSTOM, TASKS, RequestHead
from proxy.admission import Admission
from proxy.bodies import Bodies
from proxy.custom_models import CustomModels
from proxy.errors import Failure, answers_200
from proxy.frontend_failures import READY
from proxy.loading import Loading
from proxy.metrics import metrics
from proxy.settings import Settings
from proxy.shutdown import Drain
from proxy.streaming import Generated, wants_events
from proxy.upstream import Upstream
from proxy.web.page import docs, openapi, page, static


async def ping(request: Request) -> Response:
    """200 when all three pipelines can serve; otherwise 503 and what each one waits for."""
    loading: Loading = request.app.state.loading
    request.app.state.drain.check()
    waiting: dict[str, list[str]] = {}
    for task, state in (await loading.states()).items():
        if state != READY:
            waiting.setdefault(state, []).append(task)
    if waiting:
        reasons = "; ".join(f"{', '.join(tasks)} ({state})" for state, tasks in waiting.items())
        raise Failure(503, f"starting: {reasons}", retry_after=2)
    return JSONResponse({"status": "success"})


async def healthz(request: Request) -> Response:
    """200 as long as the proxy runs."""
    return JSONResponse({"status": "success"})


async def models(request: Request) -> Response:
    """What is served: each archive's model, tasks, defaults, limits and activity."""
    loading: Loading = request.app.state.loading
    archives = await loading.archives()
    described = await asyncio.gather(*(loading.describe(archive, may_load=True) for archive in archives))
    return JSONResponse({"status": "success", "models": [*chain.from_iterable(described)]})


async def custom_models(request: Request) -> Response:
    """The custom models, as a bare array."""
    custom: CustomModels = request.app.state.custom_models
    return JSONResponse(custom.listing())


class Generate:
    """A task, with a custom model if the path names one. It is an ASGI app, since it holds the body until the end."""

    def __init__(self, task: str) -> None:
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        settings: Settings = request.app.state.settings
        bodies: Bodies = request.app.state.bodies
        upstream: Upstream = request.app.state.upstream
        loading: Loading = request.app.state.loading
        custom: CustomModels = request.app.state.custom_models
        admission: Admission = request.app.state.admission
        drain: Drain = request.app.state.drain
        url_path: str | None = request.path_params.get("url_path")
        as_events = wants_events(request.headers.get("accept", ""))
        limit = settings.deadline_s or math.inf
        deadline = anyio.current_time() + limit
        head = RequestHead(
            task=self._task,
            form_type=request.headers.get("content-type", ""),
            request_id=request.state.request_id.decode("latin-1"),
            deadline=time.time() + limit,
            wants_progress=as_events,
        )
        if url_path:
            custom.check(url_path)
        archive = CUSTOM + url_path if url_path else upstream.archive_of(self._task)
        try:
            with drain.request():
                admission.check(archive, request.state.client)
                async with bodies.body(request) as body:
                    events = loading.generate(archive, head, body)
                    in_turn = admission.generate(archive, request.state.client, events)
                    await Generated(in_turn, as_events, drain, deadline, answers_200(request))(scope, receive, send)
        except ClientDisconnect:
            pass  # the client disconnected before its request was complete


routes = [
    Route("/", page, methods=["GET"]),
    Route("/docs", docs, methods=["GET"]),
    Route("/openapi.json", openapi, methods=["GET"]),
    Route("/static/{name}", static, methods=["GET"]),
    Route("/ping", ping, methods=["GET"]),
    Route("/healthz", healthz, methods=["GET"]),
    Route("/readyz", ping, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
    Route("/models", models, methods=["GET"]),
    Route("/custom_models", custom_models, methods=["GET"]),
    *(Route(f"/{task}", Generate(task), methods=["POST"]) for task in TASKS),
    Route("/custom/{url_path}", Generate("txt2img"), methods=["POST"]),
    Route("/custom/{url_path}/img2img", Generate("img2img"), methods=["POST"]),
    Route("/custom/{url_path}/masking", Generate("masking"), methods=["POST"]),
]
