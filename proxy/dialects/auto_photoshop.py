"""What the plugin Auto-Photoshop asks its own extension of AUTOMATIC1111's web UI for."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handlers.wire import MASK, Result
from proxy.dialects.a1111_errors import refusal
from proxy.dialects.a1111_fields import read_whole
from proxy.dialects.a1111_progress import NAME
from proxy.dialects.forms import read_fields
from proxy.dialects.refused import Refused, with_warnings
from proxy.dialects.translation import Translation
from proxy.errors import Failure
from proxy.generating import Generate, Order, main_archive
from proxy.streaming import NativeAnswer

PATH = "/sdapi/auto-photoshop-sd"


class GrownMask(NativeAnswer):
    """The mask, as `{"mask"}`.

    Args:
        names: by native field, the name by which the client sent it.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        super().__init__(as_events=False, always_200=False)
        self.names = names

    def response(self, result: Result) -> Response:
        return JSONResponse({"mask": self.native(result)["images"][0]["base64"]})

    def native(self, result: Result) -> dict[str, Any]:
        return with_warnings(json.loads(result.body), (), self.names)

    def refusal(self, failure: Failure) -> Response:
        return refusal(failure, self.names)


class MaskExpansion:
    """A mask is grown by pixels, then blurred; as `proxy.generating.Dialect`."""

    name = NAME
    is_job = False

    async def archive(self, request: Request) -> str:
        return main_archive(request, MASK)

    async def read(self, request: Request, body: bytes) -> tuple[Order, GrownMask]:
        fields = Translation(read_fields(body, request.headers.get("content-type", "")))
        mask = fields.picture("mask")
        if mask is None:
            raise Refused(422, "mask is missing: send it as base64.", "mask")
        fields.native["mask_mode"] = "alpha_or_luminance"
        fields.put("mask_image", "mask", mask)
        for native, name in (("mask_grow", "mask_expansion"), ("mask_blur", "blur")):
            fields.put(native, name, str(read_whole(fields, name, 0)))
        archive = main_archive(request, MASK)
        return Order.of(MASK, archive, fields.native), GrownMask(fields.names)


async def heartbeat(_: Request) -> Response:
    """The plugin looks whether its extension is there."""
    return JSONResponse({"heartbeat": True})


routes = [
    Route(f"{PATH}/heartbeat", heartbeat, methods=["GET"]),
    *(Route(f"{PATH}/mask/expansion{end}", Generate(MaskExpansion()), methods=["POST"]) for end in ("/", "")),
]
