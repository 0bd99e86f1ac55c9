"""AUTOMATIC1111's `extra-single-image` and `extra-batch-images`: images are enlarged, natively with `/upscale`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handlers.wire import UPSCALE, Result
from proxy.dialects.a1111_errors import refusal
from proxy.dialects.a1111_fields import NONE, is_on, read_real, read_whole
from proxy.dialects.a1111_progress import NAME
from proxy.dialects.forms import read_fields
from proxy.dialects.refused import Refused, with_warnings
from proxy.dialects.translation import Translation
from proxy.errors import Failure
from proxy.generating import Generate, Order, main_archive
from proxy.jobs import Cancelled
from proxy.streaming import NativeAnswer

SCALE, SIDE = 2.0, 512  # where a client says neither
MAX_IMAGES = 100
# of face restoration and of a second upscaler, with the values that ask for nothing
OFF = ("gfpgan_visibility", "codeformer_visibility", "codeformer_weight", "extras_upscaler_2_visibility")
UNUSED = ("upscaler_2", "upscale_first", "show_extras_results")


@dataclass
class Enlarged(NativeAnswer):
    """The images, and what there is to say where the web UI has HTML.

    Attributes:
        names: by native field, the name by which the client sent it.
        warnings: sentences about what the dialect could not do as asked.
        is_batch: whether there may be several.
    """

    names: Mapping[str, str] = field()  # without the default that it inherits
    warnings: Sequence[str]
    is_batch: bool
    as_events: bool = False

    def response(self, result: Result) -> Response:
        native = self.native(result)
        return self._response([image["base64"] for image in native["images"]], native.get("warnings", []))

    def native(self, result: Result) -> dict[str, Any]:
        """The native answer, with all warnings."""
        return with_warnings(json.loads(result.body), self.warnings, self.names)

    def refusal(self, failure: Failure) -> Response:
        if isinstance(failure, Cancelled):
            return self._response([], ["The request was interrupted before it had all images."])
        return refusal(failure, self.names)

    def _response(self, images: Sequence[str], sentences: Sequence[str]) -> Response:
        shown = {"images": images} if self.is_batch else {"image": images[0] if images else ""}
        return JSONResponse({"html_info": " ".join(sentences)} | shown)


class Extra:
    """A route, as `proxy.generating.Dialect`.

    Args:
        is_batch: whether it takes a list of images.
    """

    name = NAME
    is_job = False

    def __init__(self, is_batch: bool) -> None:
        self._is_batch = is_batch

    async def archive(self, request: Request) -> str:
        return main_archive(request, UPSCALE)

    async def read(self, request: Request, body: bytes) -> tuple[Order, Enlarged]:
        sent = read_fields(body, request.headers.get("content-type", ""))
        left_out = {name for name in OFF if not is_on(sent.get(name))}
        if is_on(sent.get("upscaling_crop", True)) or not is_on(sent.get("resize_mode")):
            left_out.add("upscaling_crop")  # a given size is always filled
        fields = Translation({name: value for name, value in sent.items() if name not in {*left_out, *UNUSED}})
        name = "imageList" if self._is_batch else "image"
        images = _read_batch(fields) if self._is_batch else fields.pictures(name)
        if len(images) != 1 and not (images and self._is_batch):
            raise Refused(422, f"{name} is missing: send {'images' if self._is_batch else 'it'} as base64.", name)
        fields.names["init_image"] = name
        _read_size(fields)
        if (upscaler := fields.text("upscaler_1")).lower() not in NONE:
            fields.put("upscaler", "upscaler_1", upscaler)
        fields.warn_of_rest()
        archive, own_id = main_archive(request, UPSCALE), request.state.request_id.decode("latin-1")
        first, *others = [
            partial(Order.of, UPSCALE, archive, fields.native | {"init_image": image}, own_id) for image in images
        ]
        return replace(first(), others=others), Enlarged(fields.names, fields.warnings, self._is_batch)


def _read_batch(fields: Translation) -> list[str | bytes]:
    """The images of `imageList`: `{"data", "name"}` each. Raises Refused 422."""
    listed = fields.take("imageList", [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise Refused(422, 'imageList must be a list of objects with an image as "data".', "imageList")
    if len(listed) > MAX_IMAGES:
        raise Refused(422, f"imageList must have at most {MAX_IMAGES} images, not {len(listed)}.", "imageList")
    return Translation({"imageList": [one.get("data") for one in listed]}).pictures("imageList")


def _read_size(fields: Translation) -> None:
    """How large an image becomes. Raises Refused 422."""
    by_size, scale = read_whole(fields, "resize_mode", 0), read_real(fields, "upscaling_resize", SCALE)
    sides = [read_whole(fields, f"upscaling_resize_{side}", SIDE) for side in "wh"]
    if by_size not in (0, 1):
        raise Refused(422, "resize_mode must be 0 (by upscaling_resize) or 1 (to a size).", "resize_mode")
    if by_size:
        fields.put("width", "upscaling_resize_w", str(sides[0]))
        fields.put("height", "upscaling_resize_h", str(sides[1]))
    else:
        fields.put("scale", "upscaling_resize", str(scale))


routes = [
    Route("/sdapi/v1/extra-single-image", Generate(Extra(is_batch=False)), methods=["POST"]),
    Route("/sdapi/v1/extra-batch-images", Generate(Extra(is_batch=True)), methods=["POST"]),
]
