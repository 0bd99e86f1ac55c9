"""The contract's fields, read from a request's body: types, defaults, limits, decoded images. Imports no torch."""

import contextlib
import math
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest, TooLarge
from handlers.request import forms, images

MAX_SEED = 2**53 - 1  # the largest integer that a JavaScript client can send back exactly

FLAGS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off", ""), False)

_WHOLE = re.compile(r"[+-]?[0-9]{1,30}(\.0{1,10})?")
_COMMA = re.compile(r"[+-]?[0-9]{1,30},[0-9]{1,30}")  # as a number is written in half of Europe
_PERCENT = re.compile(r"([+-]?[0-9]{1,30}([.,][0-9]{1,30})?) ?%")
_REAL = re.compile(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class ModelDefaults:
    """What the served model uses if a request does not say. `scheduler` is diffusers' class name.

    `drawn_size`: the longer side, in pixels, of every image that a fixed-size model generates; the result is scaled to
    the requested size (beyond their own size, small models repeat objects). None: no such limit.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    drawn_size: int | None = None
    scheduler: str = ""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One validated request. The model generates at `width` and `height`; the answer has `answer_size`."""

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
    strength: float = 1.0
    scheduler: str | None = None  # None: the model's own
    init_image: Image.Image | None = None  # RGB, as sent
    mask_image: Image.Image | None = None  # greyscale, the init image's size, 255 = replace
    preview: bool = False  # whether its progress has small images


def read_fields(data: Mapping[str, Any], form_type: str, max_fields: int) -> forms.Fields:
    """The fields of TorchServe's data: a body's bytes, a decoded JSON body, or a form that TorchServe has parsed."""
    body = data.get("body", data.get("data"))
    if body is None or len(data) > 1:
        return {name: bytes(value) if isinstance(value, bytearray) else value for name, value in data.items()}
    if isinstance(body, dict):
        return body
    return forms.parse_body(body.encode() if isinstance(body, str) else bytes(body), form_type, max_fields)


def parse_request(
    task: str, fields: forms.Fields, config: HandlerConfig, defaults: ModelDefaults, schedulers: Collection[str] = ()
) -> GenerationRequest:
    """Checks every field against the contract and decodes the images.

    Args:
        schedulers: the names that the field `scheduler` may have.

    Raises InvalidRequest or TooLarge with a sentence that names the field and what it may be.
    """
    read = _Reader(fields)
    # 1. the fields that every task takes
    prompt = read.text("prompt", None, config.max_prompt_chars)
    negative_prompt = read.text("negative_prompt", "", config.max_prompt_chars)
    num_outputs = read.whole("num_outputs", 1, 1, config.max_num_outputs)
    steps = read.whole("num_inference_steps", defaults.num_inference_steps, 1, config.max_num_inference_steps)
    guidance_scale = read.real("guidance_scale", defaults.guidance_scale, 0.0)
    eta = read.real("eta", 0.0, 0.0, 1.0)
    scheduler = read.choice("scheduler", schedulers)
    preview = read.flag("preview")
    # 2. the seed, random unless it was sent
    seed = read.seed()
    if seed + num_outputs - 1 > MAX_SEED:
        raise InvalidRequest(f"seed + num_outputs - 1 must be at most {MAX_SEED}: send a smaller seed.")
    if seed == 0:
        seed = 1 + secrets.randbelow(2**32 - num_outputs)

    # 3. the size, or the images that give it
    strength, init_image, mask_image = 1.0, None, None
    if task == "txt2img":
        answer_size = read.size("width", defaults.width, config), read.size("height", defaults.height, config)
    else:
        strength = read.real("strength", 0.7, 0.0, 1.0, above=True)
        if int(steps * strength) < 1:
            raise InvalidRequest(
                f"strength {strength:g} of {steps} num_inference_steps leaves no step to run: "
                "strength x num_inference_steps must be at least 1."
            )
        init_image = images.to_rgb(read.image("init_image", config))
        answer_size = init_image.size
        if task == "masking":
            mask_image = images.to_mask(read.image("mask_image", config))
            if mask_image.size != init_image.size:
                mask_image = mask_image.resize(init_image.size, Image.Resampling.NEAREST)

    # 4. the answer's size against the limit, and the size at which the model generates
    _check_answer_size(num_outputs, answer_size, config.max_response_bytes)
    if defaults.drawn_size is None:
        width, height = images.working_size(*answer_size, config.min_size, config.max_size)
    else:
        width, height = images.fixed_model_size(*answer_size, defaults.drawn_size)
    return GenerationRequest(
        task=task,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        num_outputs=num_outputs,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        eta=eta,
        width=width,
        height=height,
        answer_size=answer_size,
        strength=strength,
        scheduler=None if scheduler == defaults.scheduler else scheduler,
        init_image=init_image,
        mask_image=mask_image,
        preview=preview,
    )


def _check_answer_size(num_outputs: int, size: tuple[int, int], max_response_bytes: int) -> None:
    """An answer over TorchServe's limit would close the worker's channel and fail every request."""
    each = images.max_png_base64_bytes(*size)
    if num_outputs * each > max_response_bytes:
        if each > max_response_bytes:
            raise TooLarge(f"An image of {size[0]} x {size[1]} pixels is too large for an answer: send a smaller one.")
        raise InvalidRequest(
            f"{num_outputs} images of {size[0]} x {size[1]} pixels could exceed the {max_response_bytes} bytes of an "
            f"answer: ask for at most {max_response_bytes // each} at a time, or for smaller ones."
        )


def _number_rule(name: str, value: object, low: float, high: float, above: bool) -> str:
    least = f"above {low:g}" if above else f"of at least {low:g}"
    most = "" if high == math.inf else f" and at most {high:g}"
    rule = f"{name} must be a number {least}{most}, not {forms.shown(value)}"
    if isinstance(value, str) and _COMMA.fullmatch(value):
        return f"{rule}: write it with a point, {value.replace(',', '.')}."
    if isinstance(value, str) and (percent := _PERCENT.fullmatch(value)):
        return f"{rule}: write it as {float(percent[1].replace(',', '.')) / 100:g}."
    return f"{rule}."


def _whole_rule(rule: str, value: object) -> str:
    """The sentence that refuses `value` for a whole number by `rule`."""
    if isinstance(value, str) and (_COMMA.fullmatch(value) or _PERCENT.fullmatch(value)):
        return f"{rule}, not {forms.shown(value)}: write it in digits alone."
    return f"{rule}, not {forms.shown(value)}."


class _Reader:
    """Reads single fields. A blank number counts as absent: forms also send fields that were left blank."""

    def __init__(self, fields: forms.Fields) -> None:
        self._fields = fields

    def _scalar(self, name: str) -> str | int | float | None:
        value = self._fields.get(name)
        if isinstance(value, bytes):
            value = forms.text(value[:4000], name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        if not isinstance(value, str):
            raise InvalidRequest(f"{name} must be a number, not {forms.shown(value)}.")
        return value.strip() or None

    def _integer(self, name: str) -> int | str | float | None:
        """The whole number, or else the field as it is, for the sentence that refuses it."""
        value = self._scalar(name)
        if isinstance(value, str) and _WHOLE.fullmatch(value):
            return int(value.partition(".")[0])
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def text(self, name: str, default: str | None, max_chars: int) -> str:
        value = self._fields.get(name)
        if value is None:
            if default is None:
                raise InvalidRequest(f"{name} is missing: send it, even if it is empty.")
            return default
        return self._text_of(name, value, max_chars)

    @staticmethod
    def _text_of(name: str, value: Any, max_chars: int) -> str:
        if not isinstance(value, (bytes, str)):
            raise InvalidRequest(f"{name} must be text, not {forms.shown(value)}.")
        # before it is decoded: a character has at most four bytes
        if len(value) > 4 * max_chars or len(decoded := forms.text(value, name)) > max_chars:
            raise InvalidRequest(f"{name} is longer than {max_chars} characters.")
        return decoded

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """One of `choices`; None if the field is absent or blank."""
        value = self.text(name, "", 100).strip() or None
        if value is not None and value not in choices:
            raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, not {forms.shown(value)}.")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false if the field is absent or blank."""
        value = self._fields.get(name)
        if isinstance(value, (bool, int, float)):
            value = str(value)
        if isinstance(value, (dict, list)):
            raise InvalidRequest(f"{name} must be true or false, not {forms.shown(value)}.")
        word = self._text_of(name, value, 100).strip().lower() if value is not None else ""
        if word not in FLAGS:
            raise InvalidRequest(f"{name} must be true or false, not {forms.shown(word)}.")
        return FLAGS[word]

    def seed(self) -> int:
        """0 for a random one."""
        value = self._integer("seed")
        if value is None or value == -1:  # as other servers say it
            return 0
        if not isinstance(value, int) or not 0 <= value <= MAX_SEED:
            rule = f"seed must be a whole number from 1 to {MAX_SEED}, or 0 for a random one"
            raise InvalidRequest(_whole_rule(rule, value))
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        value = self._integer(name)
        if value is None:
            return default
        if not isinstance(value, int) or not low <= value <= high:
            raise InvalidRequest(_whole_rule(f"{name} must be a whole number from {low} to {high}", value))
        return value

    def size(self, name: str, default: int, config: HandlerConfig) -> int:
        low, high = config.min_size, config.max_size
        value = self._integer(name)
        if value is None:
            return default
        rule = f"{name} must be a multiple of {images.SIZE_MULTIPLE} from {low} to {high}"
        if isinstance(value, str):
            raise InvalidRequest(_whole_rule(rule, value))
        if not isinstance(value, int) or value % images.SIZE_MULTIPLE or not low <= value <= high:
            nearest = images.nearest_size(int(max(low, min(high, value))), low, high)
            raise InvalidRequest(f"{rule}, not {forms.shown(value)}: the nearest is {nearest}.")
        return value

    def real(self, name: str, default: float, low: float, high: float = math.inf, above: bool = False) -> float:
        """A finite number from `low`, or above it, to `high`."""
        value = self._scalar(name)
        if value is None:
            return default
        number = math.nan
        if not isinstance(value, str) or _REAL.fullmatch(value):
            with contextlib.suppress(OverflowError):
                number = float(value)
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise InvalidRequest(_number_rule(name, value, low, high, above))
        return number

    def image(self, name: str, config: HandlerConfig) -> Image.Image:
        """base64 text, or the file's own bytes from a multipart form."""
        value = self._fields.get(name)
        if value is None:
            raise InvalidRequest(f"{name} is missing: send a PNG, JPEG or WebP file as base64.")
        if isinstance(value, str):
            value = value.encode("ascii", "replace")
        if not isinstance(value, bytes):
            raise InvalidRequest(f"{name} must be an image as base64 text, not {forms.shown(value)}.")
        is_file = images.is_file(value)
        if len(value) > config.max_image_bytes * (1 if is_file else 4 / 3) + 1024:
            raise TooLarge(
                f"{name} is larger than {config.max_image_bytes} bytes: send a smaller or more compressed image."
            )
        return images.open_image(value if is_file else images.decode_base64(value, name), name, config.max_image_pixels)
