"""AUTOMATIC1111's scripts: units of ControlNet become native fields, and others must not do anything."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handlers.wire import CONTROL_NUMBERS
from proxy.dialects.a1111_fields import NONE, is_on, read_real
from proxy.dialects.a1111_lists import one_of
from proxy.dialects.refused import Refused
from proxy.dialects.translation import Translation
from proxy.generating import main_archive
from proxy.served import Served

CONTROLNET = "ControlNet"
FITS = {
    "just resize": "stretch", "crop and resize": "crop", "resize and fill": "pad", "0": "stretch", "1": "crop",
    "2": "pad", "": "crop",
}  # fmt: skip
# native fields with their names and defaults there
GUIDES = (("control_scale", "weight", 1.0), ("control_start", "guidance_start", 0.0),
          ("control_end", "guidance_end", 1.0))  # fmt: skip
BALANCED = ("", "0", "balanced")
# what only a preprocessor or a web page needs, or a GPU with little memory
WITHOUT_EFFECT = (
    "enabled", "low_vram", "lowvram", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "hr_option",
    "save_detected_map", "guessmode", "use_preview_as_input", "batch_images", "loopback", "input_mode", "is_ui",
)  # fmt: skip


def read_scripts(fields: Translation) -> None:
    """Raises Refused 422 for a script that is not here."""
    name = fields.text("script_name")
    if name.lower() not in NONE:
        raise Refused(422, f"Script {name[:100]!r} not found: there are no scripts here, leave out script_name.")
    scripts = fields.take("alwayson_scripts", {})
    if not isinstance(scripts, dict):
        raise Refused(422, "alwayson_scripts must be an object.")
    for script, told in [*scripts.items(), (CONTROLNET, {"args": fields.take("controlnet_units", [])})]:
        arguments = told.get("args", []) if isinstance(told, dict) else told
        if not _does_something(arguments):
            continue
        if script.lower() != CONTROLNET.lower():
            raise Refused(
                422, f"alwayson_scripts: {script[:100]!r} is not possible here: leave it out, or send it without args."
            )
        _read_units(fields, arguments)


def _does_something(arguments: Any) -> bool:
    """Whether a script's arguments switch it on: extensions begin with a switch, ControlNet's units have one each."""
    if not isinstance(arguments, list):
        return bool(arguments)
    if arguments[:1] == [False]:
        return False
    return any(_is_enabled(one) if isinstance(one, dict) else one for one in arguments)


def _is_enabled(unit: Mapping[str, Any]) -> bool:
    return is_on(unit.get("enabled", True))


def _read_units(fields: Translation, units: Any) -> None:
    """The units that are enabled, as native fields. Raises Refused 422."""
    units = units if isinstance(units, list) else [units]
    enabled = [unit for unit in units if isinstance(unit, dict) and _is_enabled(unit)]
    free = [number for number in CONTROL_NUMBERS if "controlnet" + number not in fields.native]
    if not enabled:
        raise Refused(422, "ControlNet takes units, each of them an object with a model and an image.", CONTROLNET)
    if len(enabled) > len(free):
        sentence = f"ControlNet takes at most {len(CONTROL_NUMBERS)} enabled units: leave the others out."
        raise Refused(422, sentence, CONTROLNET)
    for number, unit in zip(free, enabled, strict=False):
        _read_unit(fields, number, unit)


def _read_unit(fields: Translation, number: str, sent_unit: Mapping[str, Any]) -> None:
    """A unit as native fields with one of CONTROL_NUMBERS. Raises Refused 422."""
    owner = CONTROLNET + number.replace("_", " ")
    unit = Translation({name: value for name, value in sent_unit.items() if name not in WITHOUT_EFFECT})
    # 1. the ControlNet, and its image
    model, module, fit = unit.text("model"), unit.text("module"), unit.text("resize_mode").lower()
    if model.lower() in NONE:
        raise Refused(422, f"{owner}: model must be one of /controlnet/model_list.", CONTROLNET)
    if module.lower() not in NONE:
        sentence = f"{owner}: the preprocessor {module[:100]!r} is not here: send what it makes, with module none."
        raise Refused(422, sentence, CONTROLNET)
    fields.put("controlnet" + number, f"{owner}'s model", re.sub(r" \[[0-9a-fA-F]+\]$", "", model))
    sent = [unit.take(name, None) for name in ("input_image", "image")]
    image = next((one.get("image") if isinstance(one, dict) else one for one in sent if one), None)
    picture = Translation({f"{owner}'s image": image}).picture(f"{owner}'s image")
    if picture is not None:
        fields.put("control_image" + number, f"{owner}'s image", picture)
    # 2. how it guides
    if fit not in FITS:
        raise Refused(422, f"{owner}: resize_mode must be one of {', '.join(filter(None, FITS))}.", CONTROLNET)
    fields.put("control_fit" + number, f"{owner}'s resize_mode", FITS[fit])
    for native, name, default in GUIDES:
        fields.put(native + number, f"{owner}'s {name}", str(read_real(unit, name, default)))
    if unit.text("control_mode").lower() not in BALANCED:
        fields.warnings.append(f"{owner}'s control_mode was balanced, the only one here.")
    unit.warn_of_rest(f"{owner}'s ")
    fields.warnings += unit.warnings


async def _models(request: Request) -> dict[str, Any]:
    return {"model_list": await _names(request)}


async def _modules(_: Request) -> dict[str, Any]:
    return {"module_list": ["none"], "module_detail": {}}


async def _types(request: Request) -> dict[str, Any]:
    shown = {"module_list": ["none"], "model_list": ["None", *await _names(request)]}
    return {"control_types": {"All": shown | {"default_option": "none", "default_model": "None"}}}


async def _names(request: Request) -> list[str]:
    served: Served = request.app.state.served
    names: list[str] = (await served.model(main_archive(request, "txt2img"), "txt2img"))["controlnets"]
    return names


LISTS: Mapping[str, Callable[[Request], Awaitable[Any]]] = {
    "model_list": _models, "module_list": _modules, "control_types": _types,
}  # fmt: skip


async def show(request: Request) -> Response:
    return JSONResponse(await LISTS[request.path_params["name"]](request))


one_of("controlnet_list", LISTS)
routes = [Route("/controlnet/{name:controlnet_list}", show, methods=["GET"])]
