"""The names that people use for noise schedulers, as diffusers has them: `Euler a`, `DPM++ 2M Karras`, `ddim_trailing`.

The names are AUTOMATIC1111's, with its aliases and those of stable-diffusion.cpp. What each means follows
https://huggingface.co/docs/diffusers/api/schedulers/overview.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from handlers.errors import InvalidRequest
from handlers.request import forms

# schedules by their names, and the option of a scheduler that stands for each
SCHEDULES: dict[str, dict[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
    "Trailing": {"timestep_spacing": "trailing"},
    "Uniform": {"timestep_spacing": "linspace"},
    "Normal": {"timestep_spacing": "linspace"},
    "Discrete": {},
}
AUTOMATIC = "Automatic"  # the one that a sampler's name means
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")  # at most one of them


@dataclass(frozen=True)
class Sampler:
    """A scheduler to generate with.

    Attributes:
        kind: diffusers' class name.
        options: of its constructor; the others are the model's own.
        name: how the answer's parameters call it.
        schedule: how they call its schedule; "" if it is the model's own.
    """

    kind: str
    options: Mapping[str, Any]
    name: str
    schedule: str = ""


@dataclass(frozen=True)
class _Named:
    """What a name means.

    Attributes:
        schedule: the one that the name means without a schedule's name behind it.
        is_exact: whether diffusers has it; otherwise `kind` is the nearest that it has.
        flow: the class for models of flow matching.
    """

    kind: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = AUTOMATIC
    is_exact: bool = True
    flow: str = ""

    def of(self, kinds: Collection[str]) -> str:
        """Its class, of those that fit a model; "" if none does."""
        return next((kind for kind in (self.kind, self.flow) if kind in kinds), "")


_SDE = {"algorithm_type": "sde-dpmsolver++"}
NAMES = {
    "Euler": _Named("EulerDiscreteScheduler", flow="FlowMatchEulerDiscreteScheduler"),
    "Euler a": _Named("EulerAncestralDiscreteScheduler", ("euler ancestral",)),
    "DPM++ 2M": _Named("DPMSolverMultistepScheduler", ("dpm++2mv2",), {"algorithm_type": "dpmsolver++"}, "Karras"),
    "DPM++ 2M SDE": _Named("DPMSolverMultistepScheduler", (), _SDE, "Exponential"),
    "DPM++ 2M SDE Heun": _Named("DPMSolverMultistepScheduler", (), _SDE | {"solver_type": "heun"}, "Exponential"),
    "DPM++ 3M SDE": _Named("DPMSolverMultistepScheduler", (), _SDE | {"solver_order": 3}, "Exponential"),
    "DPM++ SDE": _Named("DPMSolverSinglestepScheduler", (), {}, "Karras", is_exact=False),
    "DPM++ 2S a": _Named("DPMSolverSinglestepScheduler", ("dpm++ 2s ancestral",), {}, "Karras", is_exact=False),
    "DPM2": _Named("KDPM2DiscreteScheduler", (), {}, "Karras"),
    "DPM2 a": _Named("KDPM2AncestralDiscreteScheduler", ("dpm2 ancestral",), {}, "Karras"),
    "Heun": _Named("HeunDiscreteScheduler"),
    "HeunPP2": _Named("HeunDiscreteScheduler", is_exact=False),
    "LMS": _Named("LMSDiscreteScheduler"),
    "DDIM": _Named("DDIMScheduler"),
    "DDIM CFG++": _Named("DDIMScheduler", is_exact=False),
    "DDPM": _Named("DDPMScheduler"),
    "DEIS": _Named("DEISMultistepScheduler"),
    "PLMS": _Named("PNDMScheduler", ("pndm",), {"skip_prk_steps": True}),
    "UniPC": _Named("UniPCMultistepScheduler"),
    "LCM": _Named("LCMScheduler"),
    "TCD": _Named("TCDScheduler"),
    "Restart": _Named("EulerDiscreteScheduler", (), {}, "Karras", is_exact=False),
    "DPM fast": _Named("DPMSolverMultistepScheduler", is_exact=False),
    "DPM adaptive": _Named("DPMSolverMultistepScheduler", is_exact=False),
}


def _key(name: str) -> str:
    """What the spellings of a name have in common."""
    return re.sub(r"[\s_-]+|^k_", "", name.strip().lower()).replace("dpmpp", "dpm++")


_BY_KEY = {_key(alias): name for name, one in NAMES.items() for alias in (name, *one.aliases)}
_SCHEDULE_BY_KEY = {_key(name): name for name in SCHEDULES} | {"automatic": AUTOMATIC, "": AUTOMATIC}


def names_for(kinds: Collection[str]) -> list[str]:
    """The names that mean one of these classes of diffusers'."""
    return [name for name, one in NAMES.items() if one.of(kinds) and one.is_exact]


def name_of(kind: str) -> str:
    """The name of a class of diffusers': AUTOMATIC1111's, or its own."""
    return next((name for name, one in NAMES.items() if one.of((kind,)) and one.is_exact), kind)


def find_sampler(
    text: str, kinds: Mapping[str, Collection[str]], zero_snr: bool = False, field: str = "scheduler"
) -> tuple[Sampler, list[str]]:
    """The scheduler that `text` means, and sentences for the client.

    Args:
        kinds: the classes that fit the model, each with the options that it takes.
        zero_snr: whether the model was trained with noise to the very end. Its first sigma is hundreds of times that
            of other models, so a schedule between the sigmas would spend most steps on noise: only a request that
            names it gets one.
        field: that has the text, for the sentences.

    Raises InvalidRequest for a name that none of them has.
    """
    if text in kinds:
        return Sampler(text, {}, name_of(text)), []
    key = _key(text)
    # the longest name first: "ddim trailing" begins as DDIM does
    for known in sorted(_BY_KEY, key=len, reverse=True):
        name, rest = _BY_KEY[known], key.removeprefix(known)
        if key.startswith(known) and rest in _SCHEDULE_BY_KEY and (kind := NAMES[name].of(kinds)):
            return _sampler(name, kind, _SCHEDULE_BY_KEY[rest], kinds[kind], zero_snr, field)
    offered = [*names_for(kinds), *kinds]
    near = difflib.get_close_matches(text.lower(), [each.lower() for each in offered], 3)
    nearest = [each for each in offered if each.lower() in near] or offered
    raise InvalidRequest(
        f"{field} must be the model's own or one that fits it, not {forms.shown(text)}: "
        f"{'the nearest are' if near else 'these are there:'} {', '.join(nearest)}."
    )


def _sampler(
    name: str, kind: str, schedule: str, takes: Collection[str], zero_snr: bool, field: str
) -> tuple[Sampler, list[str]]:
    one = NAMES[name]
    doubts = []
    if not SCHEDULES.get(schedule, {}).keys() <= set(takes):
        doubts.append(f"{field} {name} has no {schedule} schedule in diffusers: its own was used.")
        schedule = AUTOMATIC
    if schedule == AUTOMATIC and not zero_snr and SCHEDULES.get(one.schedule, {}).keys() <= set(takes):
        schedule = one.schedule
    plain = dict.fromkeys(SIGMAS, False) | dict(one.options)
    options = {option: value for option, value in plain.items() if option in takes} | SCHEDULES.get(schedule, {})
    if one.is_exact:
        return Sampler(kind, options, name, schedule), doubts
    doubts.append(f"The scheduler {name} is not in diffusers: {name_of(kind)} was used, the nearest.")
    return Sampler(kind, options, name_of(kind), schedule), doubts
