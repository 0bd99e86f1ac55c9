"""Libraries for AUTOMATIC1111's API in Python against a real server: a loose one, and one that checks every type."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import python_with, run
from tests.support.running import Running

pytestmark = pytest.mark.clients

WEBUIAPI, SD_BACKEND = ("webuiapi==0.9.17", "requests", "pillow"), ("sd-backend-client==0.5.0",)


def seen_by(program: str, packages: tuple[str, ...], server: Running, folder: Path) -> dict[str, Any]:
    path = str(Path(__file__).with_name(program))
    seen: dict[str, Any] = json.loads(run(python_with(folder, *packages), path, server.url).splitlines()[-1])
    return seen


def test_webuiapi(server: Running, tmp_path: Path) -> None:
    seen = seen_by("webuiapi_library.py", WEBUIAPI, server, tmp_path)
    assert (seen["version"], seen["models"], seen["current"]) == ("0.9.17", ["embedded"], "embedded")
    assert {"Euler", "Euler a", "DPM++ 2M"} <= set(seen["samplers"]) and "karras" in seen["schedulers"]
    assert seen["lists"]["get_scripts"] == {"txt2img": [], "img2img": []} and seen["lists"]["get_sd_vae"] == []
    sizes, seeds, info = seen["txt2img"]
    assert (sizes, seeds) == ([[256, 256]] * 2, [3, 4])
    assert info["sampler_name"] == "Euler a" and info["extra_generation_params"] == {}
    assert seen["png_info"] == info["infotexts"][0] and "Seed: 3, Size: 256x256" in seen["png_info"]
    size, info = seen["img2img"]
    assert size == [256, 256] and seen["kept"] and info["denoising_strength"] == 0.8
    assert seen["options"] == [None, 2] and seen["interrupted"] == {}
    status, sentence = seen["error"]
    assert status == 422 and sentence.startswith("batch_size x n_iter must be a whole number from 1 to 8")


def test_sd_backend_client(server: Running, tmp_path: Path) -> None:
    seen = seen_by("sd_backend_library.py", SD_BACKEND, server, tmp_path)
    assert (seen["version"], seen["backend"]) == ("0.5.0", "A1111Webservice")
    counts = seen["lists"]
    assert counts["list_checkpoints"] == 1 and counts["list_samplers"] > 5 and counts["list_schedulers"] > 5
    assert counts["list_vaes"] == counts["list_hypernetworks"] == counts["list_controlnet_models"] == 0
    assert seen["capabilities"]["scheduler"] and not seen["capabilities"]["interrogate"]
    sizes, seeds, info = seen["txt2img"]
    assert (sizes, seeds) == ([[256, 256]] * 2, [3, 4]) and info["sampler_name"] == "Euler a"
    assert seen["img2img"] == [[256, 256], [3]] and seen["inpaint"] == [[256, 256], True]
    shown, status, idle = seen["cancelled"]
    assert shown and shown[0][0] and status == "CANCELLED"
    assert (idle["progress"], idle["state"]["job_count"]) == (0, 0)
    assert "batch_size x n_iter must be a whole number from 1 to 8" in seen["error"]
