"""A first image with each pipeline of a small model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from handlers.engine.warm_up import warm_up
from handlers.errors import ModelError
from handlers.pipelines.loading import ServedPipeline, prepare_pipelines
from handlers.pipelines.sources import ModelSource
from tests.support import tiny_models
from tests.support.jobs import load

CPU = torch.device("cpu")


@pytest.fixture
def served(tmp_path: Path) -> dict[str, ServedPipeline]:
    path = tiny_models.save("sd1", tmp_path)
    return prepare_pipelines(ModelSource(str(path), ""), path, load(path), lambda: load(path))


def test_it_measures_a_row_of_the_native_size(served: dict[str, ServedPipeline]) -> None:
    measured = warm_up(served, CPU)
    assert measured.native_area == 8 * 8
    assert measured.call is not None and tuple(measured.call.sample.shape) == (2, 4, 8, 8)  # guided
    assert 0 < measured.seconds_per_row < math.inf and 0 < measured.image_seconds < math.inf
    assert (measured.row_bytes, measured.image_bytes) == (0, 0)  # a CPU's memory is not measured


def test_a_pipeline_that_cannot_generate_is_a_sentence(served: dict[str, ServedPipeline]) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("these parts do not fit")

    served["masking"].pipeline.prepare_mask_latents = fail
    with pytest.raises(ModelError, match="its masking pipeline cannot generate: these parts do not fit"):
        warm_up(served, CPU)
