"""Previews: what the linear map makes of a latent, held against the VAE's own image of it."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.engine.pipeline_job import PipelineJob
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.forward.side_stream import DoneEvent
from handlers.pipelines.previews import Look, PreviewMap, every, fit_preview
from handlers.request.samplers import Sampler
from tests.support.samples import sample_image


@pytest.fixture(scope="module")
def fitted(pipelines: dict[str, Any]) -> PreviewMap:
    fitted = fit_preview(pipelines["txt2img"])
    assert fitted is not None
    return fitted


def shown(preview: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(preview))) as image:
        assert image.format == "JPEG"
        return np.asarray(image.convert("RGB")).astype(float)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_the_map_shows_an_images_latent_as_the_image(pipelines: dict[str, Any], fitted: PreviewMap) -> None:
    vae = pipelines["txt2img"].vae
    image = sample_image(128, 128)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latent = vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor
    preview = shown(fitted.render(Look(torch.stack([latent, torch.zeros_like(latent)]), DoneEvent(), 1.0)))
    small = np.asarray(image.resize(preview.shape[1::-1], Image.Resampling.BOX)).astype(float)
    assert likeness(preview, small) > 0.8


@pytest.mark.parametrize("scheduler", [None, "EulerDiscreteScheduler", "DDIMScheduler"])
def test_half_way_the_preview_is_like_the_image_that_comes_out(
    pipelines: dict[str, Any], fitted: PreviewMap, scheduler: str | None
) -> None:
    from handlers.pipelines.schedulers import scheduler as by_name

    pipeline = pipelines["txt2img"]
    arguments = {"prompt": "a red apple", "num_inference_steps": 20, "guidance_scale": 3.5, "width": 128,
                 "height": 128, "generator": torch.Generator().manual_seed(3)}  # fmt: skip
    job = PipelineJob(pipeline, arguments, by_name(pipeline, Sampler(scheduler, {}, scheduler)) if scheduler else None)
    job.start()
    preview = ""
    while job.call is not None:
        output = forward(job.call)
        if job.steps_done == 10 and isinstance(job.call, DenoiserCall):
            preview = fitted.render(fitted.look(job.call, output, 3.5))
        job.advance(output)
    assert job.error is None
    pixels = shown(preview)
    final = np.asarray(job.result.images[0].resize(pixels.shape[1::-1], Image.Resampling.BOX)).astype(float)
    assert likeness(pixels, final) > 0.8


def test_previews_come_about_ten_times() -> None:
    assert [every(total) for total in (1, 4, 20, 50, 250)] == [1, 1, 2, 5, 25]
