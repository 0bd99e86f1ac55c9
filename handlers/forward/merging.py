"""One call of several, and several results of one. Only calls with equal signatures merge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from handlers.forward.calls import Call, DecodeCall


def merge(calls: Sequence[Any]) -> Any:
    """One call for all of `calls`, which have equal signatures. A single call stays exactly as it is."""
    first = calls[0]
    if len(calls) == 1:
        return first
    sample = torch.cat([call.sample for call in calls])  # (rows of all calls, channels, height, width)
    if isinstance(first, DecodeCall):
        return replace(first, sample=sample)
    timestep = torch.cat([call.with_timesteps().timestep for call in calls])  # (rows,): each row has its job's own
    kwargs = {name: _concatenate([call.kwargs[name] for call in calls]) for name in first.kwargs}
    return replace(first, sample=sample, timestep=timestep, kwargs=kwargs)


def _concatenate(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {name: _concatenate([value[name] for value in values]) for name in first}
    return first


def split(output: Any, calls: Sequence[Call]) -> list[Any]:
    """The merged call's output, (rows, channels, height, width) in a tuple or a model output, for each call."""
    if len(calls) == 1:
        return [output]
    rows = [call.rows for call in calls]
    if isinstance(output, tuple):
        return list(zip(*(part.split(rows) for part in output), strict=True))
    return [type(output)(sample=part) for part in output.sample.split(rows)]


def forward(call: Call) -> Any:
    """Runs one call on its UNet or VAE."""
    with torch.no_grad():
        return call.run()
