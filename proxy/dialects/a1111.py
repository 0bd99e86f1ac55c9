"""AUTOMATIC1111's API: `/sdapi/v1/txt2img` and `img2img`, whose fields become native ones.

What it asks for and cannot be done is refused by name, or named in `info`'s `extra_generation_params`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.routing import Route

from handlers.wire import CONTROL_NUMBERS
from proxy.dialects import a1111_extra, a1111_lists, a1111_options, a1111_progress, a1111_scripts, auto_photoshop
from proxy.dialects.a1111_answer import A1111Answer
from proxy.dialects.a1111_batches import check_count, of_each, read_count
from proxy.dialects.a1111_fields import (
    COMMON,
    FORMATS,
    asked,
    drop_mask,
    echo,
    is_on,
    read_eta,
    read_mask,
    read_real,
    read_sampler,
    read_seed,
    read_strength,
    read_whole,
)
from proxy.dialects.a1111_options import FORMAT, MODEL, SKIP, archive_of_title, read_overrides, title_of
from proxy.dialects.a1111_progress import NAME
from proxy.dialects.a1111_scripts import read_scripts
from proxy.dialects.a1111_sizes import chosen_size, read_fit, read_hires
from proxy.dialects.a1111_styles import add_styles
from proxy.dialects.forms import read_fields
from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation
from proxy.generating import Generate, Order, main_archive
from proxy.served import Served

MAX_NAME = 128  # characters of a `force_task_id`
# native fields that an answer has no use for
IMAGES = ("init_image", "mask_image", *("control_image" + number for number in CONTROL_NUMBERS))


class Images:
    """A route, as `proxy.generating.Dialect`.

    Args:
        kind: `txt2img` or `img2img`, which is native masking if there is a mask.
    """

    name = NAME
    is_job = False

    def __init__(self, kind: str) -> None:
        self._kind = kind

    async def archive(self, request: Request) -> str:
        return main_archive(request, self._kind)

    async def read(self, request: Request, body: bytes) -> tuple[Order, A1111Answer]:
        sent = read_fields(body, request.headers.get("content-type", ""))
        fields = asked(self._kind, sent)
        # 1. the model and other options
        read_scripts(fields)
        options = read_overrides(request, fields)
        fields.native["output_format"] = FORMATS[options[FORMAT]]
        if options[SKIP] > 1:  # diffusers counts the layers that are left out
            fields.put("clip_skip", f"{SKIP} - 1", str(options[SKIP] - 1))
        # 2. what every task takes
        styles = add_styles(fields, request.app.state.styles)
        fields.put("num_inference_steps", "steps", str(read_whole(fields, "steps", COMMON["steps"])))
        fields.put("guidance_scale", "cfg_scale", str(read_real(fields, "cfg_scale", COMMON["cfg_scale"])))
        schedule = read_sampler(fields)
        read_eta(fields)
        read_seed(fields)
        # 3. the images, which decide on the task, and the size
        is_sized = any(sent.get(side) not in (None, "") for side in ("width", "height"))
        size = read_whole(fields, "width", COMMON["width"]), read_whole(fields, "height", COMMON["height"])
        images = fields.pictures("init_images") if self._kind == "img2img" else []
        read_count(fields, images)
        task = "txt2img" if self._kind == "txt2img" else _read_images(fields, images)
        if task == "txt2img":
            if is_on(sent.get("enable_hr")):
                size = read_hires(fields, size, schedule)
            fields.put("width", "width", str(size[0]))
            fields.put("height", "height", str(size[1]))
        elif is_sized and fields.native.get("mask_padding", "-1") == "-1":  # a crop has a size of its own
            read_fit(fields, size)
        else:
            fields.take("resize_mode", 0)
        is_cropped = is_sized and task == "masking" and "fit" not in fields.native
        # 4. how it can be asked about; the newest preview is a part of that
        fields.native["preview"] = "true"
        own_id = fields.text("force_task_id") or request.state.request_id.decode("latin-1")
        if len(own_id) > MAX_NAME:
            raise Refused(422, f"force_task_id must have at most {MAX_NAME} characters.", "force_task_id")
        fields.warn_of_rest()
        archive = await archive_of_title(request, task, options[MODEL])
        served: Served = request.app.state.served
        crop_size = await chosen_size(served, archive, size) if is_cropped else None
        answer = A1111Answer(
            fields.names, {name: value for name, value in fields.native.items() if name not in IMAGES},
            echo(self._kind, sent), fields.warnings, await title_of(request, options[MODEL]), options[SKIP],
            styles, crop_size,
        )  # fmt: skip
        if len(images) < 2:
            return Order.of(task, archive, fields.native, own_id), answer
        check_count(fields, (await served.limits(archive, task))["max_num_outputs"])
        first, *others = [partial(Order.of, task, archive, one, own_id) for one in of_each(fields.native, images)]
        return replace(first(), others=others), answer


def _read_images(fields: Translation, images: Sequence[str | bytes]) -> str:
    """The task by the images that there are, of which the first one becomes a native field. Raises Refused."""
    if not images:
        raise Refused(404, "Init image not found: send it as base64, in the list init_images.", "init_images")
    fields.put("init_image", "init_images", images[0])
    strength = read_strength(fields, "strength", int(fields.native["num_inference_steps"]))
    mask = fields.picture("mask")
    if mask is None:
        drop_mask(fields)
        return "img2img"
    read_mask(fields, mask, strength)
    return "masking"


routes = [
    *(Route(f"/sdapi/v1/{kind}", Generate(Images(kind)), methods=["POST"]) for kind in ("txt2img", "img2img")),
    *a1111_progress.routes,
    *a1111_extra.routes,
    *a1111_options.routes,
    *a1111_lists.routes,
    *a1111_scripts.routes,
    *auto_photoshop.routes,
]
