"""Transformers in OpenVINO: which ones, for every size, alone and together, and why others run in torch."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handlers.forward.conversions import Converter
from handlers.forward.openvino import OpenVINOForward
from handlers.imaging.regions import Crop
from handlers.request.fields import GenerationRequest
from tests.support import tiny_transformers
from tests.support.jobs import a_request, generated_alone, generated_together, load


def sized(request: GenerationRequest, width: int, height: int) -> GenerationRequest:
    return replace(request, crops=(Crop.whole((width, height), (width, height)),))


REQUESTS = [
    a_request("txt2img", "a red house", 1, 3, 4.0),
    a_request("img2img", "a green house", 2, 4, 7.0),
    a_request("masking", "a blue house", 3, 3, 0.0),
    sized(a_request("txt2img", "a red house", 4, 3, 4.0), 96, 64),
    sized(a_request("txt2img", "a red house, and more", 5, 3, 4.0), 64, 112),
]


@pytest.mark.parametrize("family", ["sd3", "sd3_without_t5", "flux_dev", "flux_schnell"])
def test_one_conversion_is_for_all_sizes_and_tasks(family: str, tmp_path: Path) -> None:
    pipelines = load(tiny_transformers.save(family, tmp_path / "model"))
    run = OpenVINOForward(Converter(threads=2, dtype="float32", folder=tmp_path / "conversions"))
    images, merged = generated_together(pipelines, REQUESTS, run)
    assert merged and run.runs(pipelines["txt2img"].transformer)
    for image, request in zip(images, REQUESTS, strict=True):
        alone = np.asarray(generated_alone(pipelines, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2
    assert len([*(tmp_path / "conversions").glob("*/model.xml")]) == 1


@pytest.mark.parametrize(
    ("family", "reason"),
    [("z_image", "its rows are lists"), ("qwen_image", "it is told sizes as numbers, so a conversion would hold for")],
)
def test_others_run_in_torch(family: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipelines = load(tiny_transformers.save(family, tmp_path / "model"))
    run = OpenVINOForward(Converter(threads=2, dtype="float32", folder=tmp_path / "conversions"))
    with caplog.at_level(logging.INFO):
        (image,), _ = generated_together(pipelines, REQUESTS[:1], run)
    assert np.array_equal(np.asarray(image), np.asarray(generated_alone(pipelines, REQUESTS[0])))
    assert caplog.text.count(f"runs in torch: {reason}") == 1 and not run.runs(pipelines["txt2img"].transformer)
