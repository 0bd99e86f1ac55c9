"""Schedulers by the names that people use."""

import itertools
from inspect import signature
from typing import Any

import pytest
import torch

from handlers.errors import InvalidRequest
from handlers.pipelines.schedulers import options, scheduler, schedulers, without_waiting
from handlers.request.samplers import SCHEDULES, SIGMAS, find_sampler, name_of, names_for
from tests.support import tiny_models

# diffusers passes a tensor to NumPy, which will want another signature of it
pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")
STOCK = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_models.make("sd1")


@pytest.fixture(scope="module")
def kinds(pipeline: Any) -> dict[str, frozenset[str]]:
    return {name: options(kind) for name, kind in schedulers(pipeline).items()}


@pytest.mark.parametrize(
    ("text", "kind", "expected", "schedule"),
    [
        ("Euler a", "EulerAncestralDiscreteScheduler", {}, "Automatic"),
        ("k_euler_ancestral", "EulerAncestralDiscreteScheduler", {}, "Automatic"),
        ("euler_a", "EulerAncestralDiscreteScheduler", {}, "Automatic"),
        ("EULER", "EulerDiscreteScheduler", STOCK, "Automatic"),
        ("euler karras", "EulerDiscreteScheduler", STOCK | {"use_karras_sigmas": True}, "Karras"),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "Karras"),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "Karras"),
        ("dpm++2m", "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, "Karras"),
        ("dpm++2mv2 discrete", "DPMSolverMultistepScheduler", {"use_karras_sigmas": False}, "Discrete"),
        ("k_dpmpp_2m", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, "Karras"),
        ("DPM++ 2M SDE Heun Exponential", "DPMSolverMultistepScheduler", {"solver_type": "heun"}, "Exponential"),
        ("dpmpp_3m_sde_beta", "DPMSolverMultistepScheduler", {"solver_order": 3, "use_beta_sigmas": True}, "Beta"),
        ("ddim", "DDIMScheduler", {}, "Automatic"),
        ("ddim_trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}, "Trailing"),
        ("UniPC SGM Uniform", "UniPCMultistepScheduler", {"timestep_spacing": "trailing"}, "SGM Uniform"),
        ("uni-pc simple", "UniPCMultistepScheduler", {"timestep_spacing": "trailing"}, "Simple"),
        ("heun", "HeunDiscreteScheduler", STOCK, "Automatic"),
        ("dpm2 a", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}, "Karras"),
        ("LMS", "LMSDiscreteScheduler", {}, "Automatic"),
        ("plms", "PNDMScheduler", {"skip_prk_steps": True}, "Automatic"),
        ("DDIMScheduler", "DDIMScheduler", {}, ""),
    ],
)
def test_each_spelling_is_what_it_means(
    text: str, kind: str, expected: dict[str, Any], schedule: str, kinds: dict[str, frozenset[str]], pipeline: Any
) -> None:
    sampler, warnings = find_sampler(text, kinds)
    assert (sampler.kind, sampler.schedule, warnings) == (kind, schedule, [])
    made = scheduler(pipeline, sampler)
    assert type(made).__name__ == kind
    assert {name: made.config[name] for name in expected} == expected
    made.set_timesteps(4)


@pytest.mark.thorough
@pytest.mark.parametrize("steps", [2, 30])
def test_every_name_with_every_schedule_steps_to_its_end(
    steps: int, kinds: dict[str, frozenset[str]], pipeline: Any
) -> None:
    for name, schedule in itertools.product(names_for(kinds), ("", *SCHEDULES)):
        try:
            sampler, _ = find_sampler(f"{name} {schedule}", kinds)
        except InvalidRequest:
            continue
        made = without_waiting(scheduler(pipeline, sampler))
        made.set_timesteps(steps)
        assert sum(bool(made.config.get(option)) for option in SIGMAS) <= 1
        latents, noise = torch.zeros(1, 4, 8, 8), torch.Generator().manual_seed(1)
        options = {"generator": noise} if "generator" in signature(made.step).parameters else {}
        for timestep in made.timesteps:
            latents = made.step(torch.ones(1, 4, 8, 8), timestep, latents, **options).prev_sample
        assert latents.isfinite().all(), (name, schedule)


def test_a_model_of_pure_noise_gets_a_schedule_only_by_its_name(kinds: dict[str, frozenset[str]]) -> None:
    assert find_sampler("DPM++ 2M SDE", kinds, zero_snr=True)[0].schedule == "Automatic"
    assert find_sampler("DPM++ 2M SDE Karras", kinds, zero_snr=True)[0].schedule == "Karras"


def test_what_diffusers_has_not_is_generated_with_the_nearest_and_named(kinds: dict[str, frozenset[str]]) -> None:
    sampler, (warning,) = find_sampler("DPM++ 2S a Karras", kinds)
    assert (sampler.kind, sampler.name) == ("DPMSolverSinglestepScheduler", "DPMSolverSinglestepScheduler")
    assert warning.startswith("The scheduler DPM++ 2S a is not in diffusers: DPMSolverSinglestepScheduler was used")


def test_a_schedule_that_a_sampler_lacks_is_named(kinds: dict[str, frozenset[str]]) -> None:
    assert find_sampler("Euler a Karras", kinds) == (
        find_sampler("Euler a", kinds)[0],
        ["scheduler Euler a has no Karras schedule in diffusers: its own was used."],
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Euler b", "not 'Euler b': the nearest are Euler"),
        ("DPM++ 4M", "the nearest are DPM++ 2M"),
        ("steam engine", "not 'steam engine': these are there: Euler, Euler a, "),
        ("LCM", "the nearest are LMS"),  # this model's noise is another
        ("euler " * 15, "scheduler must be the model's own or one that fits it"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    text: str, sentence: str, kinds: dict[str, frozenset[str]]
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        find_sampler(text, kinds)
    assert sentence in str(refused.value)


def test_a_model_of_flow_matching_has_euler_with_its_schedules() -> None:
    flow: dict[str, set[str]] = {"FlowMatchEulerDiscreteScheduler": {"use_karras_sigmas", "use_beta_sigmas", "shift"}}
    assert names_for(flow) == ["Euler"] and name_of("FlowMatchEulerDiscreteScheduler") == "Euler"
    sampler, doubts = find_sampler("euler", flow)
    assert (sampler.kind, sampler.name, doubts) == ("FlowMatchEulerDiscreteScheduler", "Euler", [])
    sampler, _ = find_sampler("Euler Karras", flow)
    assert sampler.options["use_karras_sigmas"]
    with pytest.raises(InvalidRequest, match="the nearest are Euler"):
        find_sampler("Euler a", flow)
