"""What clients of AUTOMATIC1111's web UI ask a server for at their start: lists of models, samplers and the like."""

import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import psutil
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.bodies import Bodies
from proxy.dialects.a1111_fields import SCHEDULES
from proxy.dialects.a1111_styles import Styles
from proxy.dialects.forms import read_fields
from proxy.dialects.infotext import WITH_TEXT, text_of, values_of
from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation
from proxy.generating import main_archive
from proxy.served import Served

LATENT_UPSCALERS = (
    "Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
    "Latent (nearest-exact)",
)  # fmt: skip
# the same for every server of this kind; an empty list where clients only want to see that there is one
FIXED: Mapping[str, Any] = {
    "schedulers": [
        {"name": name, "label": label, "aliases": None, "default_rho": -1.0, "need_inner_model": False}
        for name, label in SCHEDULES.items()
    ],
    "latent-upscale-modes": [{"name": name} for name in LATENT_UPSCALERS],
    "sd-vae": [], "sd-modules": [], "hypernetworks": [], "face-restorers": [], "realesrgan-models": [],
    "extensions": [], "script-info": [], "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {"api": True, "nowebui": True},
}  # fmt: skip
# the server looks at its folders with each request, and loads and unloads models itself
DONE_ALREADY = (
    "refresh-checkpoints", "refresh-vae", "refresh-loras", "refresh-embeddings", "unload-checkpoint",
    "reload-checkpoint",
)  # fmt: skip


async def _main_model(request: Request) -> dict[str, Any]:
    served: Served = request.app.state.served
    return await served.model(main_archive(request, "txt2img"), "txt2img")


async def models(request: Request) -> list[dict[str, Any]]:
    served: Served = request.app.state.served
    names = [*await served.models(), *served.others()]
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in names
    ]


async def samplers(request: Request) -> list[dict[str, Any]]:
    names: list[str] = (await _main_model(request))["samplers"]
    return [{"name": name, "aliases": [_alias(name)], "options": {}} for name in names]


def _alias(sampler: str) -> str:
    """`k_dpmpp_2m` for `DPM++ 2M`."""
    return "k_" + sampler.lower().replace("++", "pp").replace(" ", "_")


async def loras(request: Request) -> list[dict[str, Any]]:
    names: list[str] = (await _main_model(request))["loras"]
    return [{"name": name, "alias": name, "path": name, "metadata": {}} for name in names]


async def embeddings(request: Request) -> dict[str, Any]:
    names: list[str] = (await _main_model(request))["embeddings"]
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 0, "vectors": 0}
    return {"loaded": dict.fromkeys(names, unknown), "skipped": {}}


async def upscalers(request: Request) -> list[dict[str, Any]]:
    """Those that enlarge pixels."""
    names: list[str] = (await _main_model(request))["upscalers"]
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
        for name in names
        if name not in LATENT_UPSCALERS
    ]


async def styles(request: Request) -> list[dict[str, str]]:
    found: Styles = request.app.state.styles
    return found.listing()


async def memory(_: Request) -> dict[str, Any]:
    ram = psutil.virtual_memory()
    told = {"free": ram.available, "used": ram.total - ram.available, "total": ram.total}
    return {"ram": told, "cuda": {"error": "The device's memory is not shown here."}}


LISTS: Mapping[str, Callable[[Request], Awaitable[Any]]] = {
    "sd-models": models, "samplers": samplers, "loras": loras, "embeddings": embeddings, "upscalers": upscalers,
    "prompt-styles": styles, "memory": memory,
}  # fmt: skip


async def show(request: Request) -> Response:
    name = request.path_params["name"]
    return JSONResponse(await LISTS[name](request) if name in LISTS else FIXED[name])


async def nothing_to_do(_: Request) -> Response:
    return JSONResponse(None)


async def png_info(request: Request) -> Response:
    """The text of a file that the web UI or this server has generated, and its values."""
    bodies: Bodies = request.app.state.bodies
    async with bodies.body(request) as body:
        fields = Translation(read_fields(body, request.headers.get("content-type", "")))
        image = fields.picture("image") or b""
        try:
            file = base64.b64decode(image.rpartition(",")[2]) if isinstance(image, str) else image
        except ValueError:
            raise Refused(422, "image is not valid base64.", "image") from None
        if file and not file.startswith(WITH_TEXT):
            raise Refused(422, "image must be a PNG, JPEG or WebP file, as base64.", "image")
        text = text_of(file)
    return JSONResponse({
        "info": text, "items": {"parameters": text} if text else {}, "parameters": values_of(text) if text else {},
    })  # fmt: skip


class OneOf(Convertor[str]):
    """One of the names of `regex` in a path, so that others are a 404, and other methods of a path a 405."""

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def one_of(kind: str, names: Iterable[str]) -> None:
    """Has `{name:kind}` in a route's path stand for these names."""
    pattern = "|".join(map(re.escape, names))
    register_url_convertor(kind, type(kind, (OneOf,), {"regex": pattern})())


one_of("a1111_list", (*LISTS, *FIXED))
one_of("a1111_done", DONE_ALREADY)

routes = [
    Route("/sdapi/v1/png-info", png_info, methods=["POST"]),
    Route("/sdapi/v1/{name:a1111_list}", show, methods=["GET"]),
    Route("/sdapi/v1/{name:a1111_done}", nothing_to_do, methods=["POST"]),
]
