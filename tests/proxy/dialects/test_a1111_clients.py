"""Requests of the programs that speak AUTOMATIC1111's API: none is refused, and each means what it meant there."""

import json
from typing import Any

import pytest

from tests.support.a1111_bodies import bodies
from tests.support.dialects import DATA, result, talking

pytestmark = pytest.mark.anyio

BODIES = bodies(DATA, DATA)
MEANS: dict[str, dict[str, Any]] = {
    "Open WebUI": {"width": "64", "num_inference_steps": "2", "scheduler": "Euler", "guidance_scale": "7.0"},
    "LibreChat": {"guidance_scale": "4.5", "scheduler": "Euler"},
    "SillyTavern": {"scheduler": "DPM++ 2M", "seed": "5"},
    "SillyTavern for stable-diffusion.cpp": {"scheduler": "dpm++2mv2 karras"},
    "text-generation-webui": {"scheduler": "DPM++ 2M Karras"},
    "AI Render": {"scheduler": "Restart", "strength": "0.6", "seed": "5"},
    "stable-gimpfusion": {"scheduler": "k_dpmpp_2m", "mask_padding": "16", "mask_fill": "original"},
    "gimp-stable-boy": {"mask_invert": "true", "mask_padding": "-1", "mask_fill": "blur", "mask_blur": "4"},
    "stable.art": {"num_outputs": "2", "mask_padding": "32", "mask_fill": "original", "mask_invert": "false"},
    "Auto-Photoshop": {"scheduler": "DPM++ 2M Karras", "mask_mode": "alpha_or_luminance", "mask_padding": "-1"},
}
NAMED: dict[str, str] = {
    "SillyTavern": "url, auth have no effect here.",
    "SillyTavern for stable-diffusion.cpp": "url has no effect here.",
    "AI Render": "image_similarity, cfg_scale_max, animated have no effect here.",
    "Auto-Photoshop": (
        "mask_expansion, selection_info, mode, original_prompt, use_sharp_mask, use_prompt_shortcut, "
        "prompt_shortcut_ui_dict, uniqueDocumentId have no effect here."
    ),
}


@pytest.mark.parametrize("program", BODIES)
async def test_it_is_understood(program: str) -> None:
    route, body = BODIES[program]
    async with talking(result(size=(64, 64))) as (http, served):
        answer = await http.post(f"/sdapi/v1/{route}", json=body)
    assert answer.status_code == 200 and "SECRET" not in answer.text
    assert served.asked[0][0] == ("txt2img" if route == "txt2img" else "masking" if "mask" in body else "img2img")
    assert MEANS[program].items() <= served.native.items()
    told = json.loads(answer.json()["info"])["extra_generation_params"]
    assert told.get("Warnings", "") == NAMED.get(program, "")
    parameters = answer.json()["parameters"]
    assert (parameters["width"], parameters["height"]) == (64, 64)  # stable.art reads them
