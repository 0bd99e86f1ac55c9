"""The contract's fields, read from a request's body: types, defaults, limits, decoded images. Imports no torch."""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, TooLarge
from handlers.imaging import output
from handlers.imaging.documents import Document
from handlers.imaging.regions import Crop
from handlers.imaging.sizes import SIZE_MULTIPLE, ModelSizes
from handlers.imaging.upscaling import UPSCALERS
from handlers.request import forms
from handlers.request.control import Control, read_controls
from handlers.request.hires import FIELDS as HIRES_FIELDS
from handlers.request.hires import Hires, read_hires
from handlers.request.images import read_init_image, read_masked_image
from handlers.request.reader import MAX_GUIDANCE, MAX_SEED, Reader, check_strength
from handlers.request.samplers import Sampler, find_sampler

QUALITY = 90  # of JPEG and WebP
# in small letters, what asks for nothing: some clients send every field to every route
NOTHING = ("", "none", "0", "0.0", "false", "no", "off")
MAX_CLIP_SKIP = 12  # layers: as many as the text encoder of Stable Diffusion 1 has


@dataclass(frozen=True)
class ModelDefaults:
    """What the served model uses if a request does not say. `scheduler` is diffusers' class name.

    `drawn_size`: the longer side, in pixels, of every image that a fixed-size model generates; the result is scaled to
    the requested size (beyond their own size, small models repeat objects). None: no such limit.
    `zero_snr`: whether it was trained with noise to the very end.
    `size_multiple`: of which the sides of what it generates are, in pixels.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    drawn_size: int | None = None
    scheduler: str = ""
    zero_snr: bool = False
    size_multiple: int = SIZE_MULTIPLE


@dataclass(frozen=True)
class Variation:
    """Another seed, and how far towards its noise an image's noise is moved, above 0 and at most 1."""

    seed: int
    strength: float


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One validated request: each output is generated as `crops`, and the answer has `answer_size`.

    Attributes:
        variation: of the first image; None for noise of the seed alone.
        width, height: of the largest crop or pass, as the model generates it.
        crops: one for a whole image; none for a mask that selects nothing.
        hires: the second pass of a txt2img image; `crops` is that of its first one.
        controls: what guides the generation, in both passes.
        sampler: the scheduler to generate with; None for the model's own.
        clip_skip: how many last layers of the text encoder are left out, as diffusers counts; None for the model's own.
        mask_image: greyscale, the init image's size, above 0 = replace; grown and blurred already.
        fills_holes: whether the mask is the init image's own transparency.
        warnings: sentences for the client about what could not be done as asked.
    """

    task: str
    prompt: str
    negative_prompt: str
    seed: int
    num_outputs: int
    num_inference_steps: int
    guidance_scale: float
    eta: float
    width: int
    height: int
    answer_size: tuple[int, int]
    crops: tuple[Crop, ...] = ()
    hires: Hires | None = None
    controls: tuple[Control, ...] = ()
    strength: float = 1.0
    sampler: Sampler | None = None
    clip_skip: int | None = None
    init_image: Document | None = None
    mask_image: Image.Image | None = None
    fills_holes: bool = False
    mask_blur: int = 0
    mask_fill: str = "original"
    patch: bool = False
    output_format: str = "png"
    output_quality: int = QUALITY
    preview: bool = False  # whether its progress has small images
    variation: Variation | None = None
    warnings: tuple[str, ...] = ()

    def seed_of(self, index: int) -> int:
        """Of image `index`: each has its own, unless its variation seed tells it from the others."""
        return self.seed if self.variation else self.seed + index

    def variation_of(self, index: int) -> Variation | None:
        """Of image `index`."""
        return self.variation and replace(self.variation, seed=self.variation.seed + index)


def read_fields(data: Mapping[str, Any], form_type: str, max_fields: int) -> forms.Fields:
    """The fields of TorchServe's data: a body's bytes, a decoded JSON body, or a form that TorchServe has parsed."""
    body = data.get("body", data.get("data"))
    if body is None or len(data) > 1:
        return {name: bytes(value) if isinstance(value, bytearray) else value for name, value in data.items()}
    if isinstance(body, dict):
        return body
    return forms.parse_body(body.encode() if isinstance(body, str) else bytes(body), form_type, max_fields)


def parse_request(
    task: str,
    fields: forms.Fields,
    config: HandlerConfig,
    defaults: ModelDefaults,
    schedulers: Mapping[str, Collection[str]] = MappingProxyType({}),
    upscalers: Collection[str] = UPSCALERS,
    controlnets: Collection[str] = (),
) -> GenerationRequest:
    """Checks every field against the contract and decodes the images.

    Args:
        schedulers: the classes that the field `scheduler` may mean, each with the options that it takes.
        upscalers: the names that the field `hires_upscaler` may have.
        controlnets: those that the fields `controlnet`, `controlnet_2` and so on may have.

    Raises InvalidRequest or TooLarge with a sentence that names the field and what it may be.
    """
    read = Reader(fields)
    # 1. the fields that every task takes
    values: dict[str, Any] = {
        "prompt": read.text("prompt", None, config.max_prompt_chars),
        "negative_prompt": read.text("negative_prompt", "", config.max_prompt_chars),
        "num_outputs": read.whole("num_outputs", 1, 1, config.max_num_outputs),
        "num_inference_steps": read.whole(
            "num_inference_steps", defaults.num_inference_steps, 1, config.max_num_inference_steps
        ),
        "guidance_scale": read.real("guidance_scale", defaults.guidance_scale, 0.0, MAX_GUIDANCE),
        "eta": read.real("eta", 0.0, 0.0, 1.0),
        "clip_skip": read.whole("clip_skip", None, 0, MAX_CLIP_SKIP) or None,
        "preview": read.flag("preview"),
    }
    output_values, warnings = read_output(read)
    values |= output_values
    values["sampler"], doubts = _sampler(read, "scheduler", defaults, schedulers)
    warnings += doubts
    # 2. the seeds, random unless they were sent
    values["seed"] = _seed(read, "seed", values["num_outputs"])
    values["variation"], doubts = _variation(read, values["num_outputs"])
    warnings += doubts
    # 3. the size, or the images that give it, and what of them is generated at which size
    sizes = ModelSizes(
        (defaults.width, defaults.height), config.min_size, config.max_size, defaults.drawn_size, defaults.size_multiple
    )
    if task == "txt2img":
        size = read.size("width", defaults.width, config), read.size("height", defaults.height, config)
        values |= {"answer_size": size, "crops": (Crop.whole(size, sizes.of_image(*size)),)}
        sampler, doubts = _sampler(read, "hires_scheduler", defaults, schedulers)
        hires, more = read_hires(read, config, sizes, values, sampler, upscalers)
        warnings += doubts + more + _of_other_tasks(fields, task, ("init_image", "mask_image", "patch", "fit"))
        values |= {"hires": hires, "answer_size": hires.size} if hires else {}
    else:
        values |= _strength(read, values["num_inference_steps"])
        others = () if task == "masking" else ("mask_image", "patch")
        warnings += _of_other_tasks(fields, task, (*HIRES_FIELDS, "hires_upscaler", *others))
        if task == "img2img":
            values |= read_init_image(read, config, sizes)
            size = values["init_image"].size
            values |= {"answer_size": size, "crops": (Crop.whole(size, sizes.of_image(*size)),)}
        else:
            values |= read_masked_image(read, config, sizes, values["strength"])
    values["controls"], doubts = read_controls(read, config, controlnets, values.get("init_image"))
    values["warnings"] = (*values.get("warnings", ()), *warnings, *doubts)
    # 4. the answer's size against its limits
    check_answer_size(values["num_outputs"], values["answer_size"], values["output_format"], config.max_response_bytes)
    crops = [*values["crops"], *([hires.crop] if (hires := values.get("hires")) else [])]
    width, height = max((crop.size for crop in crops), key=lambda size: size[0] * size[1], default=(0, 0))
    return GenerationRequest(task=task, width=width, height=height, **values)


def _sampler(
    read: Reader, name: str, defaults: ModelDefaults, schedulers: Mapping[str, Collection[str]]
) -> tuple[Sampler | None, list[str]]:
    """None for the model's own; and sentences for the client."""
    text = read.text(name, "", 100).strip()
    return (None, []) if text in ("", defaults.scheduler) else find_sampler(text, schedulers, defaults.zero_snr, name)


def read_output(read: Reader) -> tuple[dict[str, Any], list[str]]:
    """The values that the answer's file depends on, and sentences for the client."""
    format = read.choice("output_format", (*output.FORMATS, "jpg"), "png")
    quality = read.whole("output_quality", QUALITY, 1, 100)
    doubt = "output_quality has no effect on PNG, which loses nothing."
    values = {"output_format": {"jpg": "jpeg"}.get(format, format), "output_quality": quality}
    return values, [doubt] if format == "png" and quality != QUALITY else []


def _seed(read: Reader, name: str, num_outputs: int) -> int:
    seed = read.seed(name)
    if seed + num_outputs - 1 > MAX_SEED:
        raise InvalidRequest(f"{name} + num_outputs - 1 must be at most {MAX_SEED}: send a smaller seed.")
    return seed or 1 + secrets.randbelow(2**32 - num_outputs)


def _of_other_tasks(fields: forms.Fields, task: str, names: Sequence[str]) -> list[str]:
    # past the reader: what it reads are the task's own fields
    sent = [name for name in names if name in fields and _asks(fields[name])]
    return [f"{', '.join(sent)}: without effect on {task}."] if sent else []


def _asks(value: object) -> bool:
    text = value[:10].decode("latin-1") if isinstance(value, bytes) else str(value)[:10]
    return text.strip().lower() not in NOTHING


def _variation(read: Reader, num_outputs: int) -> tuple[Variation | None, list[str]]:
    """None without a strength; and sentences for the client."""
    strength = read.real("variation_strength", 0.0, 0.0, 1.0)
    seed = _seed(read, "variation_seed", num_outputs)
    if strength:
        return Variation(seed, strength), []
    doubt = "variation_seed has no effect at variation_strength 0: send a variation_strength above 0."
    return None, [doubt] if read.seed("variation_seed") else []


def of_image(task: str, document: Document, **values: Any) -> GenerationRequest:
    """The request whose answer is an image that needs no model."""
    return GenerationRequest(
        task=task, prompt="", negative_prompt="", seed=0, num_outputs=1, num_inference_steps=0, guidance_scale=0.0,
        eta=0.0, width=0, height=0, answer_size=document.size, init_image=document, **values,
    )  # fmt: skip


def _strength(read: Reader, steps: int) -> dict[str, float]:
    strength = read.real("strength", 0.7, 0.0, 1.0, above=True)
    check_strength("strength", strength, "num_inference_steps", steps)
    return {"strength": strength}


def check_answer_size(num_outputs: int, size: tuple[int, int], format: str, max_response_bytes: int) -> None:
    """Refuses beforehand what would hardly fit into an answer, or does not fit into the format."""
    longest = output.LONGEST_SIDE.get(format, max(size))
    if max(size) > longest:
        raise InvalidRequest(f"output_format {format} can have at most {longest} pixels a side: ask for png.")
    each = output.usual_base64_bytes(*size, format)
    if num_outputs * each > max_response_bytes:
        advice = "output_format=jpeg" if format == "png" else "a smaller image"
        if each > max_response_bytes:
            raise TooLarge(
                f"An image of {size[0]} x {size[1]} pixels is too large for an answer of {max_response_bytes} bytes: "
                f"ask for {advice} or, where there is a mask, for patch=true."
            )
        raise InvalidRequest(
            f"{num_outputs} images of {size[0]} x {size[1]} pixels could exceed the {max_response_bytes} bytes of an "
            f"answer: ask for at most {max_response_bytes // each} at a time, for {advice} or, where there is a mask, "
            "for patch=true."
        )
