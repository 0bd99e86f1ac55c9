"""The noise between two seeds, alone and in images of the stock pipelines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.noise import between, generator, initial_noise, use_variations
from handlers.request.fields import Variation
from handlers.wire import TASKS
from tests.support import jobs

SHAPE = (1, 4, 16, 16)


def noise(seed: int, variation: Variation | None = None) -> torch.Tensor:
    return initial_noise(SHAPE, generator(seed, variation), torch.device("cpu"), torch.float32)


def test_without_a_variation_a_seed_has_torchs_own_noise() -> None:
    assert torch.equal(noise(7), torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)))


def test_the_way_from_one_noise_to_the_other_keeps_its_strength() -> None:
    one, two = noise(7), noise(8)
    shares = (0.1, 0.25, 0.5, 0.75, 1.0)
    between_them = [noise(7, Variation(8, share)) for share in shares]
    assert torch.equal(between_them[-1], two)
    distances = [float((each - one).norm()) for each in between_them]
    assert distances == sorted(distances) and distances[0] > 0
    for each in between_them:
        assert abs(float(each.std()) - 1) < 0.05  # a straight line would have 0.7 in its middle


def test_two_equal_seeds_have_nothing_between_them() -> None:
    assert torch.equal(noise(7, Variation(7, 0.5)), noise(7))
    opposite = between(noise(7), -noise(7), 0.5)
    assert opposite.isfinite().all()


def test_half_precision_does_not_overflow() -> None:
    large = torch.randn((1, 4, 128, 128), generator=torch.Generator().manual_seed(1))
    halves = between(large.half(), large.flip(-1).half(), 0.5)
    assert halves.dtype == torch.float16 and halves.isfinite().all()


def test_only_the_noise_at_the_start_varies() -> None:
    """What a scheduler draws later is the seed's own."""
    own, varied = generator(7), generator(7, Variation(8, 0.5))
    initial_noise(SHAPE, own)
    initial_noise(SHAPE, varied)
    assert torch.equal(torch.randn(4, generator=own), torch.randn(4, generator=varied))


@pytest.fixture(scope="module")
def pipelines(tiny_model: Path) -> dict[str, Any]:
    loaded = jobs.load(tiny_model)
    for pipeline in loaded.values():
        use_variations(pipeline)
    return loaded


@pytest.mark.parametrize("task", TASKS)
def test_an_image_varies_by_its_strength(pipelines: dict[str, Any], task: str) -> None:
    request = jobs.a_request(task, "a house", 7, 4, 5.0)

    def image(variation: Variation | None) -> np.ndarray:
        arguments = pipeline_arguments(request, pipelines[task], request.crops[0])
        with torch.no_grad():
            made = pipelines[task](**arguments, generator=generator(7, variation)).images[0]
        return np.asarray(made, dtype=int)

    plain, little, much = image(None), image(Variation(8, 0.05)), image(Variation(8, 0.9))
    changes = [np.abs(each - plain).mean() for each in (little, much)]
    assert 0 < changes[0] < changes[1]
