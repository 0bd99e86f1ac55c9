"""AUTOMATIC1111's fields: their defaults in its API, those without effect here, and what each of them means natively.

The API's defaults are other ones than those of its page.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation

COMMON: Mapping[str, Any] = {
    "prompt": "", "negative_prompt": "", "styles": None, "seed": -1, "subseed": -1, "subseed_strength": 0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": None, "sampler_index": "Euler",
    "scheduler": None, "batch_size": 1, "n_iter": 1, "steps": 50, "cfg_scale": 7.0, "width": 512, "height": 512,
    "restore_faces": None, "tiling": None, "denoising_strength": 0.75, "eta": None, "s_min_uncond": None,
    "s_churn": None, "s_tmax": None, "s_tmin": None, "s_noise": None, "override_settings": None,
    "override_settings_restore_afterwards": True, "script_name": None, "send_images": True, "save_images": False,
    "do_not_save_samples": False, "do_not_save_grid": False, "disable_extra_networks": False, "comments": None,
    "force_task_id": None, "infotext": None,
}  # fmt: skip
# of the second pass, which `enable_hr` asks for
HIRES: Mapping[str, Any] = {
    "hr_scale": 2.0, "hr_upscaler": None, "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0,
    "hr_checkpoint_name": None, "hr_additional_modules": None, "hr_sampler_name": None, "hr_scheduler": None,
    "hr_prompt": "", "hr_negative_prompt": "", "hr_cfg": None, "hr_distilled_cfg": None, "firstphase_width": 0,
    "firstphase_height": 0, "firstpass_image": None,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "txt2img": {**COMMON, "enable_hr": False, **HIRES},
    "img2img": {
        **COMMON, "init_images": None, "mask": None, "resize_mode": 0, "mask_blur": None, "mask_blur_x": 4,
        "mask_blur_y": 4, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0,
        "inpainting_mask_invert": 0, "image_cfg_scale": None, "initial_noise_multiplier": None,
        "include_init_images": False,
    },
}  # fmt: skip
# fields without effect here, and the values that ask for none, which clients send with every request; any other value
# of them is named in the answer
WITHOUT_EFFECT: Mapping[str, Collection[Any]] = {
    "seed_resize_from_h": (0, -1), "seed_resize_from_w": (0, -1), "restore_faces": (0,),
    "tiling": (0,), "s_min_uncond": (0,), "s_churn": (0,), "s_tmin": (0,), "s_tmax": (0,), "s_noise": (1,),
    "initial_noise_multiplier": (1,), "override_settings_restore_afterwards": (1,), "send_images": (1,),
    "disable_extra_networks": (0,),
}  # fmt: skip
# about what is done elsewhere, or with another field of these; never worth a word
UNNAMED = (
    "save_images", "do_not_save_samples", "do_not_save_grid", "script_args",
    "include_init_images", "comments",
)  # fmt: skip
# in the order of the web UI; what each one means, the handlers' table says (handlers/request/samplers.py)
SCHEDULES: Mapping[str, str] = {
    "automatic": "Automatic", "uniform": "Uniform", "karras": "Karras", "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform", "simple": "Simple", "normal": "Normal", "beta": "Beta",
}  # fmt: skip
OTHER_SCHEDULES = ("trailing", "discrete")  # that the handlers' table knows besides, from stable-diffusion.cpp
# Forge's and stable-diffusion.cpp's, which diffusers does not have: an image with another one is better than none
ABSENT_SCHEDULES = (
    "polyexponential", "kl_optimal", "align_your_steps", "align_your_steps_gits", "align_your_steps_11",
    "align_your_steps_32", "ddim", "turbo", "ays", "gits", "smoothstep", "lcm",
)  # fmt: skip
FILLS = {"0": "blur", "1": "original", "2": "noise", "3": "neutral"}
FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
SEED_0 = 2**32  # natively, 0 is a random seed; the web UI's random ones are smaller than this
NONE = ("", "none", "automatic", "use same checkpoint", "use same sampler", "use same scheduler")  # in small letters


def asked(kind: str, sent: Mapping[str, Any]) -> Translation:
    """The fields without those that ask for nothing.

    Args:
        kind: of DEFAULTS.
    """
    unneeded = {name for name, off in WITHOUT_EFFECT.items() if name in sent and _number(sent[name]) in off}
    unneeded |= {*UNNAMED, "enable_hr"}
    if kind == "txt2img" and not is_on(sent.get("enable_hr")):
        unneeded |= {*HIRES, "denoising_strength"}
    return Translation({name: value for name, value in sent.items() if name not in unneeded})


def echo(kind: str, sent: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that this API knows, as they count. Others may hold secrets of another server's."""
    known = {name: default if sent.get(name) is None else sent[name] for name, default in DEFAULTS[kind].items()}
    if not is_on(sent.get("include_init_images")):
        known |= {name: None for name in ("init_images", "mask") if name in known}
    return known


def is_on(value: Any) -> bool:
    return bool(_number(value))


def _number(value: Any) -> Any:
    """Numbers and booleans that come as text as numbers; other text in small letters; the rest as it is."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text in ("true", "false"):
        return int(text == "true")
    try:
        return float(text)
    except ValueError:
        return text


def read_whole(fields: Translation, name: str, default: int) -> int:
    """Raises Refused 422 for anything but a whole number of up to 18 digits."""
    text = fields.text(name).removesuffix(".0") or str(default)
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise Refused(422, f"{name} must be a whole number of at most 18 digits.", name)
    return int(text)


def read_real(fields: Translation, name: str, default: float) -> float:
    """Raises Refused 422 for anything but a finite number."""
    text = fields.text(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refused(422, f"{name} must be a number.", name)
    return number


def read_seed(fields: Translation) -> None:
    """A seed below 0, or one that is no number, is random."""
    text = fields.text("seed")
    try:
        seed = int(text) if text.isdecimal() else int(float(text))
    except (ValueError, OverflowError):
        seed = -1
    if seed >= 0:
        fields.put("seed", "seed", str(seed or SEED_0))
    strength = read_real(fields, "subseed_strength", 0)
    subseed = read_whole(fields, "subseed", -1)
    if strength:
        fields.put("variation_strength", "subseed_strength", str(strength))
        if subseed >= 0:
            fields.put("variation_seed", "subseed", str(subseed or SEED_0))
    elif subseed > 0:
        fields.warnings.append("subseed has no effect at subseed_strength 0.")


def read_sampler(fields: Translation) -> str:
    """The sampler with its schedule, which may be a field of its own, which is returned, or the end of the name."""
    by_index, by_name = (
        "" if text.lower() in NONE else text for text in map(fields.text, ("sampler_index", "sampler_name"))
    )
    schedule = read_schedule(fields, "scheduler")
    sampler = with_schedule(by_name or by_index or str(COMMON["sampler_index"]), schedule)
    fields.put("scheduler", "sampler_name" if by_name or not by_index else "sampler_index", sampler)
    return schedule


def read_eta(fields: Translation) -> None:
    """To be called after `read_sampler`.

    Without DDIM, 1 asks for nothing: it is the web UI's own for ancestral samplers, and some clients always send it.
    """
    fields.passes("eta", "eta")
    if fields.native.get("eta") in ("1", "1.0") and "ddim" not in str(fields.native["scheduler"]).lower():
        del fields.native["eta"]


def read_schedule(fields: Translation, name: str) -> str:
    """A schedule's name; empty for the sampler's own. Raises Refused 422 for a name that no web UI has."""
    schedule = fields.text(name)
    key = _key(schedule)
    if key in map(_key, NONE):
        return ""
    if key in map(_key, ABSENT_SCHEDULES):
        fields.warnings.append(f"{name}: diffusers has no {schedule[:50]} schedule, so it has no effect.")
        return ""
    if key not in map(_key, (*SCHEDULES, *OTHER_SCHEDULES)):
        offered = ", ".join(SCHEDULES.values())
        raise Refused(422, f"{name} must be one of {offered}, not {schedule[:50]!a}.", name)
    return schedule


def with_schedule(sampler: str, schedule: str) -> str:
    """The sampler's name with the schedule at its end, in place of one that is there; as it is without one."""
    if not schedule:
        return sampler
    ends = sorted((_key(label) for label in SCHEDULES.values()), key=len, reverse=True)
    # "DPM++ 2M Karras" with a schedule beside it
    end = next((end for end in ends if _key(sampler).endswith(end)), "")
    bare = _key(sampler).removesuffix(end) if end else sampler
    return f"{bare} {schedule}"


def _key(name: str) -> str:
    """What the spellings of a name have in common."""
    return re.sub(r"[\s_-]+", "", name.lower())


def read_mask(fields: Translation, mask: str | bytes, strength: float) -> None:
    """The mask, and how it is used. Raises Refused 422."""
    fields.put("mask_image", "mask", mask)
    fields.native["mask_mode"] = "alpha_or_luminance"
    both, x, y = (read_whole(fields, name, -1) for name in ("mask_blur", "mask_blur_x", "mask_blur_y"))
    blur = both if both >= 0 else max(x, y)
    fields.put("mask_blur", "mask_blur", str(blur if blur >= 0 else DEFAULTS["img2img"]["mask_blur_x"]))
    fields.put("mask_invert", "inpainting_mask_invert", str(is_on(fields.take("inpainting_mask_invert", 0))).lower())
    is_asked = fields.has("inpainting_fill")
    fill = str(read_whole(fields, "inpainting_fill", 0))
    if fill not in FILLS:
        raise Refused(422, "inpainting_fill must be 0 (fill), 1 (original), 2 (latent noise) or 3 (latent nothing).")
    if strength < 1:  # from there on, the model starts from noise alone
        fields.put("mask_fill", "inpainting_fill", FILLS[fill])
    elif is_asked and FILLS[fill] != "original":
        fields.warnings.append("inpainting_fill has no effect at denoising_strength 1.")
    padding = read_whole(fields, "inpaint_full_res_padding", 0)
    is_crop = is_on(fields.take("inpaint_full_res", True))
    fields.put("mask_padding", "inpaint_full_res_padding", str(padding if is_crop else -1))


def drop_mask(fields: Translation) -> None:
    """The fields about a mask have no meaning without one, and clients send them all the same."""
    for name in DEFAULTS["img2img"]:
        if name.startswith(("mask", "inpaint")):
            fields.take(name, None)


def read_strength(fields: Translation, native: str, steps: int) -> float:
    """As it was sent, but at least so much that one of `steps` runs: the web UI runs one more than diffusers."""
    strength = read_real(fields, "denoising_strength", COMMON["denoising_strength"])
    if strength >= 0 and steps > 0 and steps * strength < 1:
        fields.warnings.append(f"denoising_strength {strength:g} leaves none of {steps} steps: one was run.")
        strength = min(1.0, round(1 / steps + 1e-6, 7))
    fields.put(native, "denoising_strength", str(strength))
    return strength
