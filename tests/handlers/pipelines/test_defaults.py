"""A model's own defaults: those that its folder gives, and those that follow from its parts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from handlers.errors import ModelError
from handlers.pipelines.defaults import DEFAULTS_FILE, model_defaults
from handlers.request.fields import ModelDefaults
from tests.support import tiny_models
from tests.support.jobs import load
from tests.support.paths import EMBEDDED, SIDE


def a_pipeline(sample_size: Any = 64, time_cond_proj_dim: int | None = None, scheduler: str = "PNDMScheduler") -> Any:
    return SimpleNamespace(
        unet=SimpleNamespace(config=SimpleNamespace(sample_size=sample_size, time_cond_proj_dim=time_cond_proj_dim)),
        scheduler=type(scheduler, (), {"config": {}})(),
        vae_scale_factor=8,
    )


@pytest.mark.parametrize(("family", "steps", "guidance_scale"), [("sd1", 50, 7.5), ("lcm", 4, 8.5), ("turbo", 4, 0.0)])
def test_defaults_are_the_models(family: str, steps: int, guidance_scale: float, tmp_path: Path) -> None:
    path = tiny_models.save(family, tmp_path)
    pipeline = load(path, "txt2img")["txt2img"]
    scheduler = type(pipeline.scheduler).__name__
    assert model_defaults(path, pipeline) == ModelDefaults(steps, guidance_scale, 64, 64, scheduler=scheduler)


def test_the_embedded_models_own_defaults(pipelines: dict[str, Any]) -> None:
    own = model_defaults(EMBEDDED, pipelines["txt2img"])
    assert own == ModelDefaults(
        20, 3.5, SIDE, SIDE, drawn_size=SIDE, scheduler="DPMSolverMultistepScheduler", zero_snr=True
    )


def test_a_scheduler_of_few_steps_tells_a_distilled_model(tmp_path: Path) -> None:
    found = model_defaults(tmp_path, a_pipeline(scheduler="LCMScheduler"))
    assert (found.num_inference_steps, found.guidance_scale) == (4, 1.0)


@pytest.mark.parametrize(("sample_size", "size"), [(96, (768, 768)), ((48, 96), (768, 384)), (None, (512, 512))])
def test_the_size_is_the_unets(sample_size: Any, size: tuple[int, int], tmp_path: Path) -> None:
    found = model_defaults(tmp_path, a_pipeline(sample_size))
    assert (found.width, found.height) == size


def test_the_file_goes_before_the_parts(tmp_path: Path) -> None:
    (tmp_path / DEFAULTS_FILE).write_text('{"num_inference_steps": 12, "drawn_size": 256}')
    found = model_defaults(tmp_path, a_pipeline(time_cond_proj_dim=256))
    assert (found.num_inference_steps, found.guidance_scale, found.drawn_size) == (12, 8.5, 256)


@pytest.mark.parametrize("text", ["{", '{"num_inference_steps": "many"}', '{"guidance_scale": null}'])
def test_a_faulty_file_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / DEFAULTS_FILE).write_text(text)
    with pytest.raises(ModelError, match=f"{DEFAULTS_FILE} must give numbers for num_inference_steps"):
        model_defaults(tmp_path, a_pipeline())
