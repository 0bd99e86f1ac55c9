"""Progress and interruption as AUTOMATIC1111's web UI has them, but of the caller's own requests alone.

There, they concern whatever the server does at the moment, whoever asked for it.
"""

import base64
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.bodies import Bodies
from proxy.dialects.a1111_answer import TIMESTAMP
from proxy.dialects.a1111_fields import is_on
from proxy.dialects.forms import read_fields
from proxy.errors import Failure
from proxy.job_routes import eta_s
from proxy.jobs import ENDED, Job, Jobs

NAME = "a1111"  # of the dialect; what other dialects' clients have asked for is not touched
BEGINNING = 0.01  # of the progress, as there: 0 means that nothing runs


async def progress(request: Request) -> Response:
    """Of the newest request that has not ended, or of the one that `id_task` names."""
    job = _current(request)
    preview = None if is_on(request.query_params.get("skip_current_image")) else _preview(job)
    return JSONResponse({
        "progress": _share(job), "eta_relative": _eta_s(request, job), "state": _state(job), "current_image": preview,
        "textinfo": _text(job),
    })  # fmt: skip


async def internal_progress(request: Request) -> Response:
    """Of the request with the id `id_task`, which its client has chosen as `force_task_id`."""
    bodies: Bodies = request.app.state.bodies
    async with bodies.body(request) as body:
        fields = read_fields(body, request.headers.get("content-type", ""))
    job = _find(request, str(fields.get("id_task")))
    status = job.status if job else ""
    is_active = status == "in_progress"
    preview = _preview(job) if is_on(fields.get("live_preview", True)) else None
    return JSONResponse({
        "active": is_active, "queued": status == "queued", "completed": status in ENDED,
        "progress": _share(job) if is_active else None, "eta": _eta_s(request, job) if is_active else None,
        "live_preview": f"data:image/jpeg;base64,{preview}" if preview else None,
        "id_live_preview": job.step if job and preview else -1, "textinfo": _text(job),
    })  # fmt: skip


async def interrupt(request: Request) -> Response:
    """Cancels what `progress` shows; its client gets an answer without images."""
    jobs: Jobs = request.app.state.jobs
    if job := _current(request):
        jobs.cancel(job)
    return JSONResponse({})


async def skip(request: Request) -> Response:
    """As `interrupt`: the images of a request are generated together, so none of them comes next."""
    await interrupt(request)
    return JSONResponse(None)


def _current(request: Request) -> Job | None:
    if name := request.query_params.get("id_task"):
        job = _find(request, name)
        return job if job and job.status not in ENDED else None
    jobs: Jobs = request.app.state.jobs
    own = jobs.open(request.state.owner, NAME)
    return own[-1] if own else None


def _find(request: Request, name: str) -> Job | None:
    jobs: Jobs = request.app.state.jobs
    try:
        job = jobs.find(request.state.owner, name)
    except Failure:
        return None
    return job if job.dialect == NAME else None


def _share(job: Job | None) -> float:
    return min(1.0, BEGINNING + job.step / max(job.steps, 1)) if job else 0.0


def _eta_s(request: Request, job: Job | None) -> float:
    seconds = eta_s(request, job) if job else None
    return round(seconds or 0.0, 1)


def _preview(job: Job | None) -> str | None:
    return base64.b64encode(job.preview.data).decode() if job and job.preview else None


def _text(job: Job | None) -> str | None:
    if job is None or job.status != "queued":
        return None
    return f"Loading {job.loads}" if job.loads else f"In queue: {job.place}"


def _state(job: Job | None) -> dict[str, Any]:
    # clients wait for a job_count of 0; -1 stands for a request that has not begun
    count = 0 if job is None else 1 if job.status == "in_progress" else -1
    return {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": job.id if job else "",
        "job_count": count, "job_timestamp": time.strftime(TIMESTAMP, time.localtime(job.created_at)) if job else "0",
        "job_no": 0, "sampling_step": job.step if job else 0, "sampling_steps": job.steps if job else 0,
    }  # fmt: skip


routes = [
    Route("/sdapi/v1/progress", progress, methods=["GET"]),
    Route("/internal/progress", internal_progress, methods=["POST"]),
    Route("/sdapi/v1/interrupt", interrupt, methods=["POST"]),
    Route("/sdapi/v1/skip", skip, methods=["POST"]),
]
