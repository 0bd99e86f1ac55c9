"""OpenAI's Images API: `/v1/images/generations`, `edits`, `variations`, and `/v1/models`.

What it asks for becomes native fields. What cannot be done is refused, or named in the answer's `warnings`.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.dialects.forms import read_fields
from proxy.dialects.openai_answer import FILES, OpenAIAnswer
from proxy.dialects.openai_extra_args import take_extra_args
from proxy.dialects.openai_sizes import size_of_answer
from proxy.dialects.refused import Refused
from proxy.dialects.translation import SIDE_STEP, Translation
from proxy.generating import Generate, Order, archive_of, main_archive
from proxy.kept import Kept, KeptImage
from proxy.served import Served, UnknownModel

# clients have these names built in, so they mean the default model
ALIASES = re.compile(r"(gpt-image|chatgpt-image|dall-e)-.{1,64}|sd-cpp-local|default")
SIZE = re.compile(r"(\d{1,5})[xX](\d{1,5})")
MAX_SIDE = 3840  # pixels, OpenAI's; sizes up to it are taken, and generated smaller where the server has less
# the model's own steps are multiplied with these, for a model that needs four has no use for thirty
STEPS = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 3.0}
LEVELS = {"": "medium", "auto": "medium", "standard": "medium", "hd": "high"} | {level: level for level in STEPS}
MAX_PARTIALS = 3
TASKS = {"generations": "txt2img", "edits": "img2img", "variations": "img2img"}
# native fields by the names that other servers of this API gave them; the others have the native names
NAMES = {
    "prompt": ("prompt",),
    "num_outputs": ("n",),
    "num_inference_steps": ("num_inference_steps", "steps", "step"),
    "guidance_scale": ("guidance_scale", "cfg_scale", "true_cfg_scale"),
    "scheduler": ("scheduler", "sampler"),
    "output_quality": ("output_compression",),
}
OTHERS = ("negative_prompt", "seed", "eta", "clip_skip", "output_format")
COMMON = (*NAMES, *OTHERS)
OF_MASKS = ("mask_mode", "mask_padding", "mask_grow", "mask_blur", "mask_fill")
# fields that may stand in the prompt: some clients have no other place for them
IN_PROMPTS = {name for names in NAMES.values() for name in names} - {"prompt"}
IN_PROMPTS |= {*OTHERS, *OF_MASKS, "strength", "quality", "size", "lora"}


class Images:
    """A route, as `proxy.generating.Dialect`.

    Args:
        kind: of TASKS.
    """

    name = "openai"
    is_job = False

    def __init__(self, kind: str) -> None:
        self._kind = kind

    async def archive(self, request: Request) -> str:
        return main_archive(request, TASKS[self._kind])

    async def read(self, request: Request, body: bytes) -> tuple[Order, OpenAIAnswer]:
        sent, doubts = take_extra_args(read_fields(body, request.headers.get("content-type", "")), IN_PROMPTS)
        fields = Translation(sent)
        fields.warnings += doubts
        # 1. the model, which other fields depend on
        model = fields.text("model")
        # 2. the images, which decide on the task
        task = TASKS[self._kind] if self._kind == "generations" else self._read_images(fields, model)
        archive = await _archive(request, task, model)
        # 3. what has a native field
        for native in COMMON:
            fields.passes(native, *NAMES.get(native, (native,)))
        if self._kind == "variations":
            fields.native.setdefault("prompt", "")
        if task != "txt2img":
            fields.passes("strength", "strength")
        for native in OF_MASKS if task == "masking" else ():
            fields.passes(native, native)
        output_format = str(fields.native.get("output_format", "png")).lower()
        if output_format == "jpg":
            output_format = "jpeg"
        if fields.native.get("output_quality") == "0":
            fields.native["output_quality"] = "1"
        if "output_quality" in fields.native and output_format == "png":
            fields.warnings.append("output_compression has no effect on PNG, which is lossless: ask for jpeg or webp.")
        loras, prompt = _read_loras(fields), fields.native.get("prompt")
        if loras and isinstance(prompt, str):
            fields.native["prompt"] = f"{prompt} {loras}"
        size = await _read_size(fields, request, archive, self._kind)
        quality = await _read_quality(fields, request, archive, task)
        # 4. how the answer comes
        background = fields.text("background")
        if background not in ("", "auto", "opaque"):
            raise Refused(400, "background must be opaque or auto: images here have no transparency.", "background")
        how = fields.text("response_format")
        if how not in ("", "b64_json", "url"):
            raise Refused(400, "response_format must be b64_json or url.", "response_format")
        stream, partials = _read_stream(fields)
        shown_size = None
        if partials:
            fields.native["preview"] = "true"
            served: Served = request.app.state.served
            shown_size = await size_of_answer(fields.native, served, archive, task)
        if stream and how == "url":
            fields.warnings.append("A stream has its images as base64: response_format=url has no effect.")
        fields.refuses(("svg", "frame_"), "has no meaning here: images are PNG, JPEG or WebP, without frames.")
        fields.warn_of_rest()
        answer = OpenAIAnswer(
            request, "image_generation" if self._kind == "generations" else "image_edit",
            fields.names, fields.warnings, output_format, quality, size, shown_size,
            as_address=how == "url", as_events=stream, partial_images=partials, is_dalle=model.startswith("dall-e"),
        )  # fmt: skip
        return Order.of(task, archive, fields.native), answer

    def _read_images(self, fields: Translation, model: str) -> str:
        """The task by the images that there are, which become native fields."""
        images = fields.pictures("image", "images", "url")
        if not images:
            raise Refused(400, "image is missing: send a PNG, JPEG or WebP file.", "image")
        fields.put("init_image", "image", images[0])
        fields.names["mask_image"] = "mask"
        if len(images) > 1:
            fields.warnings.append(f"Only the first of the {len(images)} images is edited; the others have no effect.")
        if self._kind == "variations":
            return "img2img"
        if masks := fields.pictures("mask"):
            fields.put("mask_image", "mask", masks[0])
            fields.native["mask_mode"] = "transparent"  # and white, where nothing is transparent
        elif masks := fields.pictures("mask_image"):  # of other servers, where white is replaced
            fields.put("mask_image", "mask_image", masks[0])
        elif model != "dall-e-2":  # whose mask was the image's own transparency
            return "img2img"
        if len(masks) > 1:
            raise Refused(400, "mask must be one file.", "mask")
        fields.native["strength"] = "1"  # what is masked is generated anew, unless strength says otherwise
        return "masking"


async def _read_size(fields: Translation, request: Request, archive: str, kind: str) -> str | None:
    """`512x512`, or None for the model's or the image's own."""
    text = fields.text("size")
    if text in ("", "auto"):
        return None
    match = SIZE.fullmatch(text)
    if not match:
        raise Refused(400, "size must be WIDTHxHEIGHT in pixels, such as 512x512, or auto.", "size")
    size = int(match[1]), int(match[2])
    if kind == "generations":
        served: Served = request.app.state.served
        asked, size = size, _nearest(size, await served.limits(archive, "txt2img"))
        if size != asked:
            fields.warnings.append(
                f"size {text} is more than is generated here: the images have {size[0]}x{size[1]}, of the same shape."
            )
        fields.put("width", "size", str(size[0]))
        fields.put("height", "size", str(size[1]))
    return f"{size[0]}x{size[1]}"


def _nearest(size: tuple[int, int], limits: Mapping[str, int]) -> tuple[int, int]:
    """The largest size of the same shape that is generated; `size` itself if it is small enough, or far too large."""
    longest, most = max(size), limits["max_size"] // SIDE_STEP * SIDE_STEP
    if not most < longest <= MAX_SIDE:
        return size
    width, height = (round(side * most / longest / SIDE_STEP) * SIDE_STEP for side in size)
    return (width, height) if min(width, height) >= limits["min_size"] else size


def _read_loras(fields: Translation) -> str:
    """The LoRAs of vLLM-Omni's field `lora`, an object or a list of them, as prompts name them; empty without any."""
    value = fields.take("lora", [])
    texts = []
    for lora in value if isinstance(value, list) else [value]:
        name, scale = (lora.get("name"), lora.get("scale", 1)) if isinstance(lora, dict) else (None, 1)
        if isinstance(lora, dict) and (others := lora.keys() - {"name", "scale"}):
            fields.warnings.append(f"lora: {', '.join(ascii(other[:50]) for other in sorted(others))} has no effect.")
        if not isinstance(name, str) or not isinstance(scale, (int, float)) or re.search("[<>:]", name):
            raise Refused(400, 'lora must have a name and a scale, such as {"name": "ink", "scale": 0.8}.', "lora")
        texts.append(f"<lora:{name}:{scale}>")
    return " ".join(texts)


async def _read_quality(fields: Translation, request: Request, archive: str, task: str) -> str:
    """The level; a number of steps follows from it unless the client sent one."""
    text = fields.text("quality").lower()
    if text not in LEVELS:
        fields.warnings.append(f"quality is one of {', '.join(STEPS)}, standard, hd and auto: it was taken as medium.")
    level = LEVELS.get(text, "medium")
    if level == "medium":
        return level
    if "num_inference_steps" in fields.native:
        fields.warnings.append(f"quality has no effect beside {fields.names['num_inference_steps']}.")
        return level
    served: Served = request.app.state.served
    model = await served.model(archive, task)
    own, most = model["defaults"]["num_inference_steps"], model["limits"]["max_num_inference_steps"]
    # an edit runs only a part of its steps, which must not be none
    least = min(own, 1 if task == "txt2img" else 2)
    fields.native["num_inference_steps"] = str(max(least, min(most, round(own * STEPS[level]))))
    return level


def _read_stream(fields: Translation) -> tuple[bool, int]:
    """Whether the answer is a stream, and how many partial images it shows."""
    stream = fields.text("stream").lower()
    if stream not in ("", "true", "false"):
        raise Refused(400, "stream must be true or false.", "stream")
    partials = fields.text("partial_images").removesuffix(".0") or "0"
    if not partials.isdecimal() or int(partials) > MAX_PARTIALS:
        raise Refused(400, f"partial_images must be a whole number from 0 to {MAX_PARTIALS}.", "partial_images")
    if int(partials) and stream != "true":
        fields.warnings.append("partial_images has no effect without stream=true.")
        return False, 0
    return stream == "true", int(partials)


async def _archive(request: Request, task: str, name: str) -> str:
    """The archive that does a task with the model that a client names. Raises Refused 404 for an unknown name."""
    try:
        return await archive_of(request, task, "" if ALIASES.fullmatch(name) else name)
    except UnknownModel as unknown:
        raise Refused(404, f"{unknown.message[:-1]}, or gpt-image-1.", "model", "model_not_found") from None


async def models(request: Request) -> Response:
    """The main model by its name, and the others that could be served."""
    served: Served = request.app.state.served
    names = [*await served.models(), *served.others()]
    return JSONResponse({"object": "list", "data": [_model(name) for name in names]})


async def model(request: Request) -> Response:
    name = request.path_params["model"]
    await _archive(request, "txt2img", name)
    return JSONResponse(_model(name))


def _model(name: str) -> dict[str, Any]:
    # the time of its making is not known, and clients want a number
    return {"id": name, "object": "model", "created": 0, "owned_by": "sd-api-server"}


async def file(request: Request) -> Response:
    """An image that was answered by address."""
    kept: Kept = request.app.state.kept
    image = kept.get(request.path_params["name"], KeptImage)
    headers = {"Cache-Control": "private, max-age=600", "X-Content-Type-Options": "nosniff"}
    return Response(image.data, media_type=image.mime_type, headers=headers)


async def options(request: Request) -> Response:
    """A client asks in this way whether the server is there."""
    return Response(status_code=204, headers={"Allow": "POST, OPTIONS"})


routes = [
    *(Route(f"/v1/images/{kind}", Generate(Images(kind)), methods=["POST"]) for kind in TASKS),
    *(Route(f"/v1/images/{kind}", options, methods=["OPTIONS"]) for kind in TASKS),
    Route(FILES + "{name}", file, methods=["GET"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/models/{model:path}", model, methods=["GET"]),
]
