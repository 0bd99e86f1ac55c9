"""AUTOMATIC1111's sizes: its "hires fix" as the native second pass, and how an init image comes to its size."""

from proxy.dialects.a1111_fields import COMMON, NONE, read_real, read_schedule, read_strength, read_whole, with_schedule
from proxy.dialects.refused import Refused
from proxy.dialects.translation import SIDE_STEP, Translation
from proxy.served import Served

UPSCALER = "Latent"  # where a client names none
MAX_SCALE = 1000.0
FITS = {0: "stretch", 1: "crop", 2: "pad", 3: "stretch"}  # by `resize_mode`


def read_hires(fields: Translation, size: tuple[int, int], schedule: str) -> tuple[int, int]:
    """The fields of the second pass, which become native ones. Raises Refused 422.

    Args:
        size: the request's width and height.
        schedule: of the first pass.

    Returns the size of the first pass.
    """
    # 1. the sizes
    first, target = _sizes(fields, size)
    fields.put("hires_width", "hr_resize_x (width x hr_scale)", str(target[0]))
    fields.put("hires_height", "hr_resize_y (height x hr_scale)", str(target[1]))
    fields.put("hires_upscaler", "hr_upscaler", fields.text("hr_upscaler") or UPSCALER)
    # 2. how it is generated; what is not said is as in the first pass
    steps = read_whole(fields, "hr_second_pass_steps", 0) or int(fields.native["num_inference_steps"])
    fields.put("hires_steps", "hr_second_pass_steps", str(steps))
    read_strength(fields, "hires_strength", steps)
    for native, name in (("hires_prompt", "hr_prompt"), ("hires_negative_prompt", "hr_negative_prompt")):
        if text := fields.text(name):
            fields.put(native, name, text)
    sampler, own_schedule = fields.text("hr_sampler_name"), read_schedule(fields, "hr_scheduler")
    if sampler.lower() not in NONE or own_schedule:
        own = str(fields.native["scheduler"]) if sampler.lower() in NONE else sampler
        fields.put("hires_scheduler", "hr_sampler_name", with_schedule(own, own_schedule or schedule))
    if scale := read_real(fields, "hr_cfg", 0):
        fields.put("hires_guidance_scale", "hr_cfg", str(scale))
    # 3. what is not possible
    if fields.text("hr_checkpoint_name").lower() not in NONE:
        raise Refused(422, "hr_checkpoint_name is not possible: both passes use the same model.", "hr_checkpoint_name")
    fields.take("hr_additional_modules", None)
    fields.take("hr_distilled_cfg", None)  # of models that are not here
    return first


def _sizes(fields: Translation, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of the first pass, and of the second."""
    scale = max(0.0, min(MAX_SCALE, read_real(fields, "hr_scale", 2.0)))  # a size beyond it is refused in any case
    first = read_whole(fields, "firstphase_width", 0), read_whole(fields, "firstphase_height", 0)
    wanted = read_whole(fields, "hr_resize_x", 0), read_whole(fields, "hr_resize_y", 0)
    if any(first):  # then width and height are the second pass's
        return _whole(first, size), size
    return size, _whole(wanted if any(wanted) else (int(size[0] * scale), int(size[1] * scale)), size)


def _whole(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """Sides that are possible; one that is 0 follows from the other by the shape."""
    width, height = size
    width, height = width or height * shape[0] // max(1, shape[1]), height or width * shape[1] // max(1, shape[0])
    return width // SIDE_STEP * SIDE_STEP, height // SIDE_STEP * SIDE_STEP


def read_fit(fields: Translation, size: tuple[int, int]) -> None:
    """What brings the init image to this size. Raises Refused 422."""
    mode = read_whole(fields, "resize_mode", 0)
    if mode not in FITS:
        raise Refused(422, "resize_mode must be 0 (stretch), 1 (crop), 2 (fill) or 3 (latent stretch).", "resize_mode")
    if mode == 3:
        fields.warnings.append("resize_mode 3 stretched the image in pixels.")
    fields.put("fit", "resize_mode", FITS[mode])
    fields.put("width", "width", str(size[0]))
    fields.put("height", "height", str(size[1]))


async def chosen_size(served: Served, archive: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """The size that a client wants a crop to be generated at; None if it is no more than a default.

    Clients send this API's default, or the model's own size, with every request.
    """
    if size == (COMMON["width"], COMMON["height"]):
        return None
    own = await served.defaults(archive, "masking")
    return None if size == (own.get("width"), own.get("height")) else size
