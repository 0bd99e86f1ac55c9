"""AUTOMATIC1111's `/sdapi/v1/extra-single-image`: an image is enlarged, natively with `/upscale`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handlers.wire import UPSCALE, Result
from proxy.dialects.a1111_errors import refusal
from proxy.dialects.a1111_fields import NONE, is_on, read_real, read_whole
from proxy.dialects.a1111_progress import NAME
from proxy.dialects.forms import native_body, read_fields
from proxy.dialects.refused import Refused, with_warnings
from proxy.dialects.translation import Translation
from proxy.errors import Failure
from proxy.generating import Generate, Order, main_archive
from proxy.jobs import Cancelled
from proxy.streaming import NativeAnswer

SCALE, SIDE = 2.0, 512  # where a client says neither
# of face restoration and of a second upscaler, with the values that ask for nothing
OFF = ("gfpgan_visibility", "codeformer_visibility", "codeformer_weight", "extras_upscaler_2_visibility")
UNUSED = ("upscaler_2", "upscale_first", "show_extras_results")


class Enlarged(NativeAnswer):
    """The image, and what there is to say where the web UI has HTML.

    Args:
        names: by native field, the name by which the client sent it.
        warnings: sentences about what the dialect could not do as asked.
    """

    def __init__(self, names: Mapping[str, str], warnings: Sequence[str]) -> None:
        super().__init__(as_events=False, always_200=False)
        self.names, self._warnings = names, warnings

    def response(self, result: Result) -> Response:
        native = self.native(result)
        return JSONResponse({"html_info": " ".join(native.get("warnings", [])), "image": native["images"][0]["base64"]})

    def native(self, result: Result) -> dict[str, Any]:
        """The native answer, with all warnings."""
        return with_warnings(json.loads(result.body), self._warnings, self.names)

    def refusal(self, failure: Failure) -> Response:
        if isinstance(failure, Cancelled):
            return JSONResponse({"html_info": "It was interrupted before it had an image.", "image": ""})
        return refusal(failure, self.names)


class Extra:
    """The route, as `proxy.generating.Dialect`."""

    name = NAME
    is_job = False

    async def archive(self, request: Request) -> str:
        return main_archive(request, UPSCALE)

    async def read(self, request: Request, body: bytes) -> tuple[Order, Enlarged]:
        sent = read_fields(body, request.headers.get("content-type", ""))
        left_out = {name for name in OFF if not is_on(sent.get(name))}
        if is_on(sent.get("upscaling_crop", True)) or not is_on(sent.get("resize_mode")):
            left_out.add("upscaling_crop")  # a given size is always filled
        fields = Translation({name: value for name, value in sent.items() if name not in {*left_out, *UNUSED}})
        image = fields.picture("image")
        if image is None:
            raise Refused(422, "image is missing: send it as base64.", "image")
        fields.put("init_image", "image", image)
        by_size, scale = read_whole(fields, "resize_mode", 0), read_real(fields, "upscaling_resize", SCALE)
        sides = [read_whole(fields, f"upscaling_resize_{side}", SIDE) for side in "wh"]
        if by_size not in (0, 1):
            raise Refused(422, "resize_mode must be 0 (by upscaling_resize) or 1 (to a size).", "resize_mode")
        if by_size:
            fields.put("width", "upscaling_resize_w", str(sides[0]))
            fields.put("height", "upscaling_resize_h", str(sides[1]))
        else:
            fields.put("scale", "upscaling_resize", str(scale))
        if (upscaler := fields.text("upscaler_1")).lower() not in NONE:
            fields.put("upscaler", "upscaler_1", upscaler)
        fields.warn_of_rest()
        name = request.state.request_id.decode("latin-1")
        order = Order(UPSCALE, main_archive(request, UPSCALE), *native_body(fields.native), name)
        return order, Enlarged(fields.names, fields.warnings)


routes = [Route("/sdapi/v1/extra-single-image", Generate(Extra()), methods=["POST"])]
