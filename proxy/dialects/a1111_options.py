"""`/sdapi/v1/options`: what a caller has set for its later requests, above all the model.

In the web UI, options belong to the server, so of two users who choose a model and generate, one gets the other's.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.bodies import Bodies
from proxy.dialects.a1111_fields import FORMATS, NONE, read_whole
from proxy.dialects.forms import read_fields
from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation
from proxy.generating import archive_of
from proxy.loading import Loading
from proxy.served import Served, UnknownModel
from proxy.shutdown import Drain

MAX_SKIP = 12  # layers, as the web UI counts them; a model may have fewer
MAX_OWNERS = 1000  # callers whose options are kept; the one goes whose options were set longest ago
MODEL, SKIP, FORMAT = "sd_model_checkpoint", "CLIP_stop_at_last_layers", "samples_format"
DEFAULTS: Mapping[str, Any] = {MODEL: "", SKIP: 1, FORMAT: "png"}  # no name means the main model


class Options:
    """Kept in memory, by owner."""

    def __init__(self) -> None:
        self._set: dict[str, dict[str, Any]] = {}

    def of(self, owner: str) -> Mapping[str, Any]:
        return {**DEFAULTS, **self._set.get(owner, {})}

    def set(self, owner: str, changes: Mapping[str, Any]) -> None:
        self._set[owner] = self._set.pop(owner, {}) | dict(changes)
        if len(self._set) > MAX_OWNERS:
            del self._set[next(iter(self._set))]


def read_options(fields: Translation) -> dict[str, Any]:
    """Those of DEFAULTS that are sent. Raises Refused 422 for a value that cannot be used."""
    read: dict[str, Any] = {}
    if (model := fields.text(MODEL)).lower() not in NONE:
        read[MODEL] = model
    if skip := read_whole(fields, SKIP, 0):
        if skip > MAX_SKIP:
            raise Refused(422, f"{SKIP} must be a whole number from 1 to {MAX_SKIP}.", SKIP)
        read[SKIP] = max(1, skip)
    if kind := fields.text(FORMAT).lower():
        if kind not in FORMATS:
            raise Refused(422, f"{FORMAT} must be one of {', '.join(FORMATS)}.", FORMAT)
        read[FORMAT] = kind
    return read


def read_overrides(request: Request, fields: Translation) -> Mapping[str, Any]:
    """The options that count for one request: the caller's, those of `override_settings`, and other servers' fields."""
    overrides = fields.take("override_settings", {})
    if not isinstance(overrides, dict):
        raise Refused(422, "override_settings must be an object.")
    told = Translation({name: value for name, value in overrides.items() if str(value).lower() not in NONE})
    own = {MODEL: fields.text("model"), SKIP: fields.text("clip_skip")}  # of SD.Next and stable-diffusion.cpp
    read = read_options(Translation(own)) | read_options(told)
    told.warn_of_rest("override_settings.")
    fields.warnings += told.warnings
    options: Options = request.app.state.options
    return {**options.of(request.state.owner), **read}


async def archive_of_title(request: Request, task: str, title: str) -> str:
    """The archive that does a task with a model by its title, name or file. Raises Refused 422 for an unknown one."""
    name = re.sub(r" \[[0-9a-fA-F]+\]$", "", title)
    try:
        return await archive_of(request, task, name)
    except UnknownModel as unknown:
        try:
            return await archive_of(request, task, re.sub(r"\.(safetensors|ckpt)$", "", name))
        except UnknownModel:
            raise Refused(422, unknown.message.replace("model", MODEL, 1), MODEL) from None


async def title_of(request: Request, title: str) -> str:
    """A model's title as it is listed: the main one's if none is chosen."""
    served: Served = request.app.state.served
    return title or (await served.models())[0]


async def show(request: Request) -> Response:
    options: Options = request.app.state.options
    own = {**options.of(request.state.owner)}
    own[MODEL] = await title_of(request, own[MODEL])
    return JSONResponse({**own, "sd_checkpoint_hash": "", "sd_vae": "Automatic"})


async def change(request: Request) -> Response:
    """Some options, or all of them as they were shown. The answer comes when a newly chosen model is loaded."""
    bodies: Bodies = request.app.state.bodies
    options: Options = request.app.state.options
    loading: Loading = request.app.state.loading
    owner: str = request.state.owner
    async with bodies.body(request) as body:
        changes = read_options(Translation(read_fields(body, request.headers.get("content-type", ""))))
    before = options.of(owner)
    if MODEL in changes and changes[MODEL] != await title_of(request, before[MODEL]):
        drain: Drain = request.app.state.drain
        limit_s = request.app.state.settings.deadline_s or math.inf
        archive = await archive_of_title(request, "txt2img", changes[MODEL])
        with drain.request(), drain.wait_until(anyio.current_time() + limit_s):
            await loading.load(archive)
    elif MODEL in changes:
        changes[MODEL] = before[MODEL]
    options.set(owner, changes)
    return JSONResponse(None)


routes = [
    Route("/sdapi/v1/options", show, methods=["GET"]),
    Route("/sdapi/v1/options", change, methods=["POST"]),
]
