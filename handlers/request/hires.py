"""The fields of a second pass, which AUTOMATIC1111's web UI calls "hires fix". Imports no torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from handlers.config import HandlerConfig
from handlers.errors import InvalidRequest
from handlers.imaging.regions import Crop
from handlers.imaging.sizes import ModelSizes
from handlers.request.reader import MAX_GUIDANCE, Reader, check_strength
from handlers.request.samplers import Sampler

FIELDS = ("hires_width", "hires_height", "hires_steps", "hires_strength", "hires_prompt", "hires_negative_prompt",
          "hires_scheduler", "hires_guidance_scale")  # fmt: skip


@dataclass(frozen=True)
class Hires:
    """A second pass: the first one's image is enlarged, and then changed as img2img does it.

    Attributes:
        upscaler: one of UPSCALERS, or the name of a file.
        crop: the whole image, and the size at which it is generated.
    """

    upscaler: str
    crop: Crop
    num_inference_steps: int
    strength: float
    prompt: str
    negative_prompt: str
    guidance_scale: float
    sampler: Sampler | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the answer."""
        return self.crop.box[2:]


def read_hires(
    read: Reader,
    config: HandlerConfig,
    sizes: ModelSizes,
    first: Mapping[str, Any],
    sampler: Sampler | None,
    upscalers: Collection[str],
) -> tuple[Hires | None, list[str]]:
    """None without an upscaler; and sentences for the client.

    Args:
        first: the values of the first pass, which hold for the second one unless its fields say otherwise.
        sampler: of the field `hires_scheduler`.
        upscalers: their names.

    Raises InvalidRequest.
    """
    # 1. the fields, which are checked in any case
    upscaler = read.named("hires_upscaler", upscalers)
    size = read.size("hires_width", 0, config), read.size("hires_height", 0, config)
    steps = read.whole("hires_steps", first["num_inference_steps"], 1, config.max_num_inference_steps)
    strength = read.real("hires_strength", 0.7, 0.0, 1.0, above=True)
    prompt = read.text("hires_prompt", "", config.max_prompt_chars)
    negative_prompt = read.text("hires_negative_prompt", "", config.max_prompt_chars)
    guidance_scale = read.real("hires_guidance_scale", first["guidance_scale"], 0.0, MAX_GUIDANCE)
    # 2. what they mean together
    if upscaler is None:
        sent = [name for name in FIELDS if read.has(name)]
        return None, [f"{', '.join(sent)} without hires_upscaler: there was no second pass."] if sent else []
    if missing := [name for name in ("hires_width", "hires_height") if not read.has(name)]:
        raise InvalidRequest(f"hires_upscaler needs the size of the second pass: send {' and '.join(missing)}.")
    check_strength("hires_strength", strength, "hires_steps", steps)
    doubts = []
    if sizes.drawn is not None:
        doubts.append(
            f"This model generates every image with a longer side of {sizes.drawn} pixels, so the second pass has no "
            "more pixels than the first."
        )
    return Hires(
        upscaler, Crop.whole(size, sizes.of_image(*size)), steps, strength,
        prompt or first["prompt"], negative_prompt or first["negative_prompt"], guidance_scale,
        sampler if read.has("hires_scheduler") else first["sampler"],
    ), doubts  # fmt: skip
