"""The contract's endpoints."""

import asyncio
from dataclasses import asdict
from itertools import chain

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handlers.wire import TASKS, UPSCALE
from proxy import job_routes
from proxy.bodies import Bodies
from proxy.custom_models import CustomModels
from proxy.dialects import a1111
from proxy.dialects import openai as openai_images
from proxy.dialects.forms import model_of
from proxy.errors import Failure
from proxy.frontend_failures import READY
from proxy.generating import Generate, Native, NativeJob, archive_of
from proxy.jobs import PATH
from proxy.loading import Loading
from proxy.metrics import metrics
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
    """What is served: each archive's model, tasks, defaults, limits and activity. And what could be served."""
    custom: CustomModels = request.app.state.custom_models
    loading: Loading = request.app.state.loading
    archives = await loading.archives()
    described = await asyncio.gather(*(loading.describe(archive, may_load=True) for archive in archives))
    models = [*chain.from_iterable(described)]
    loaded = {model["archive"] for model in models}
    available = [
        {**asdict(entry), "archive": entry.archive, "loaded": entry.archive in loaded} for entry in custom.entries()
    ]
    return JSONResponse({"status": "success", "models": models, "available": available})


async def custom_models(request: Request) -> Response:
    """The custom models, as a bare array."""
    custom: CustomModels = request.app.state.custom_models
    return JSONResponse(custom.listing())


async def tokens(request: Request) -> Response:
    """How many tokens the prompts of a body have, chunk by chunk."""
    bodies: Bodies = request.app.state.bodies
    loading: Loading = request.app.state.loading
    form_type = request.headers.get("content-type", "")
    async with bodies.body(request) as body:
        archive = await archive_of(request, TASKS[0], model_of(body, form_type))
        return Response(await loading.count(archive, form_type, body), media_type="application/json")


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
    Route("/tokens", tokens, methods=["POST"]),
    Route("/custom_models", custom_models, methods=["GET"]),
    *(Route(f"/{task}", Generate(Native(task)), methods=["POST"]) for task in TASKS),
    Route("/upscale", Generate(Native(UPSCALE)), methods=["POST"]),
    Route("/custom/{url_path}", Generate(Native("txt2img")), methods=["POST"]),
    Route("/custom/{url_path}/img2img", Generate(Native("img2img")), methods=["POST"]),
    Route("/custom/{url_path}/masking", Generate(Native("masking")), methods=["POST"]),
    *openai_images.routes,
    *a1111.routes,
    Route(PATH, Generate(NativeJob()), methods=["POST"]),
    Route(PATH, job_routes.listing, methods=["GET"]),
    Route(PATH + "/{name}", job_routes.show, methods=["GET"]),
    Route(PATH + "/{name}", job_routes.cancel, methods=["DELETE"]),
    Route(PATH + "/{name}/cancel", job_routes.cancel, methods=["POST"]),
    Route(PATH + "/{name}/images/{index:int}", job_routes.image, methods=["GET"]),
]
