"""`/v1/jobs`: jobs are started, asked about, fetched and cancelled, by nobody but their owner."""

import codecs
import re
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from handlers.wire import TASKS, UPSCALE
from proxy.admission import Admission
from proxy.dialects.forms import FORM_TYPES, form_value, read_fields
from proxy.dialects.refused import Refused
from proxy.jobs import ENDED, PATH, Job, Jobs, until_changed
from proxy.kept import Kept, KeptImage

KINDS = (*TASKS, UPSCALE)
MAX_WAIT_S = 60  # of a question that waits for news
POLL_S = 1  # after which it is worth asking again


def prefers_job(request: Request) -> bool:
    """Whether a `Prefer` header asks for `respond-async` (RFC 7240)."""
    parts = re.split("[,;]", ",".join(request.headers.getlist("prefer")))
    return any(part.strip().lower() == "respond-async" for part in parts)


def chosen_id(request: Request) -> str:
    """The client's own X-Request-Id; empty if it sent none, or one that is not adopted."""
    sent = request.headers.get("x-request-id", "")
    return sent if sent.encode("latin-1") == request.state.request_id else ""


def kind_of(request: Request, body: bytes) -> str:
    """The task of a body for `POST /v1/jobs`, from the address's `kind` or the body's. Raises Refused 400."""
    kind, content_type = request.query_params.get("kind"), request.headers.get("content-type", "")
    field = None
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and body[:100].removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        raise Refused(400, "The body looks like JSON: send it with the header Content-Type: application/json.")
    if media_type in FORM_TYPES:
        field = form_value(body, b"kind") or None
    elif kind is None or b"kind" in body:
        field = read_fields(body, content_type).get("kind")
    if None not in (kind, field) and kind != field:
        raise Refused(400, "kind differs in the address and in the body: send it once.", "kind")
    kind = field if kind is None else kind
    if kind not in KINDS:
        raise Refused(400, f"kind must be one of {', '.join(KINDS)}: send it as a field, or in the address.", "kind")
    return str(kind)


def accepted(request: Request, job: Job) -> Response:
    """The answer to a request that has become a job."""
    response = JSONResponse(_described(request, job), 202)
    response.headers["Location"] = f"{request.state.prefix}{PATH}/{job.id}"
    if prefers_job(request):
        response.headers["Preference-Applied"] = "respond-async"
    _say_when_to_poll(response.headers, job)
    return response


def eta_s(request: Request, job: Job) -> float | None:
    """Seconds until a job is finished; None where nothing is known yet."""
    admission: Admission = request.app.state.admission
    return admission.expected_s(job.archive, job.place) if job.status == "queued" else job.eta_s


async def listing(request: Request) -> Response:
    """The caller's jobs, the oldest first."""
    kept: Kept = request.app.state.kept
    jobs = [_described(request, job) for job in kept.of(request.state.owner, Job)]
    return JSONResponse({"object": "list", "data": jobs})


async def show(request: Request) -> Response:
    """A job; `?wait=20` waits for a change of its status."""
    job = _job(request)
    wait = request.query_params.get("wait", "0")
    if not re.fullmatch(r"\d{1,3}", wait) or int(wait) > MAX_WAIT_S:
        raise Refused(400, f"wait must be a whole number of seconds from 0 to {MAX_WAIT_S}.", "wait")
    await until_changed(job, int(wait))
    response = JSONResponse(_described(request, job))
    _say_when_to_poll(response.headers, job)
    return response


async def cancel(request: Request) -> Response:
    """The job, cancelled unless it had ended."""
    job = _job(request)
    jobs: Jobs = request.app.state.jobs
    jobs.cancel(job)
    return JSONResponse(_described(request, job))


async def image(request: Request) -> Response:
    """An image's file; with `?preview=1`, what the first one looks like so far."""
    job, index = _job(request), request.path_params["index"]
    file: KeptImage | None
    if request.query_params.get("preview"):
        file, tag = job.preview, f'"{job.id}-{job.step}"'
    else:
        file, tag = (job.files[index] if index < len(job.files) else None), f'"{job.id}-image{index}"'
    if file is None:
        raise Refused(404, f"This job is {job.status} and has no such image: its `images` lists those that it has.")
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.mime_type, headers=headers)


def _job(request: Request) -> Job:
    """Raises as `Jobs.find`."""
    jobs: Jobs = request.app.state.jobs
    return jobs.find(request.state.owner, request.path_params["name"])


def _described(request: Request, job: Job) -> dict[str, Any]:
    jobs: Jobs = request.app.state.jobs
    has_ended, eta = job.status in ENDED, eta_s(request, job)
    prefix = request.state.prefix  # without it, a client that has its key in its address could not follow these
    described: dict[str, Any] = {
        "id": job.id, "object": "job", "kind": job.kind, "status": job.status,
        "created_at": int(job.created_at),
        "started_at": None if job.started_at is None else int(job.started_at),
        "completed_at": None if job.completed_at is None else int(job.completed_at),
        "expires_at": jobs.expires_at(job),
        "queue_position": None if has_ended else job.place,
        "eta_seconds": None if eta is None else round(eta, 1),
        "progress": 1.0 if job.status == "completed" else round(job.step / max(job.steps, 1), 3),
        "step": job.step, "steps": job.steps,
        "preview_url": f"{prefix}{PATH}/{job.id}/images/0?preview=1" if job.preview else None,
        "images": [{**image, "url": prefix + image["url"]} for image in job.images],
        "error": job.error,
    }  # fmt: skip
    described |= {"loads": job.loads} if job.loads and not has_ended else {}
    return described | ({"warnings": job.warnings} if job.warnings else {})


def _say_when_to_poll(headers: MutableHeaders, job: Job) -> None:
    if job.status not in ENDED:
        headers["Retry-After"], headers["openai-poll-after-ms"] = str(POLL_S), str(1000 * POLL_S)
