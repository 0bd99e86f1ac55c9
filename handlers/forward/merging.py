"""One call of several, and several results of one. Only calls with equal signatures merge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from handlers.forward.calls import Call, ControlCall, DecodeCall, DenoiserCall


def merge(calls: Sequence[Any]) -> Any:
    """One call for all of `calls`, which have equal signatures. A single call stays exactly as it is."""
    first = calls[0]
    if len(calls) == 1:
        return first
    sample = _joined([call.sample for call in calls])  # the rows of all calls
    if isinstance(first, DecodeCall):
        return replace(first, sample=sample)
    timestep = torch.cat([call.with_timesteps().timestep for call in calls])  # (rows,): each row has its job's own
    kwargs = {name: _merged([call.kwargs[name] for call in calls], first) for name in first.kwargs}
    return replace(first, sample=sample, timestep=timestep, kwargs=kwargs)


def _merged(values: Sequence[Any], first: DenoiserCall) -> Any:
    """One argument for all calls; what has no item for each row is the same for all of them."""
    if isinstance(values[0], Mapping):
        return {name: _merged([value[name] for value in values], first) for name in values[0]}
    if first.is_stack(values[0]):
        return [_joined(items) for items in zip(*values, strict=True)]
    return _joined(values) if first.is_rows(values[0]) else values[0]


def _joined(values: Sequence[Any]) -> Any:
    return [item for value in values for item in value] if isinstance(values[0], list) else torch.cat(list(values))


def split(output: Any, calls: Sequence[Call]) -> list[Any]:
    """The merged call's output, with a row for each row of the latents in a tuple or a model output, for each call."""
    if len(calls) == 1:
        return [output]
    rows = [call.rows for call in calls]
    if isinstance(calls[0], ControlCall):
        stack, middle = output
        stacks = zip(*(torch.split(tensor, rows) for tensor in stack), strict=True)
        return list(zip(stacks, torch.split(middle, rows), strict=True))
    if isinstance(output, tuple):
        return list(zip(*(_parted(part, rows) for part in output), strict=True))
    return [type(output)(sample=part) for part in _parted(output.sample, rows)]


def _parted(rows_of_all: Any, rows: list[int]) -> Sequence[Any]:
    if isinstance(rows_of_all, torch.Tensor):
        return torch.split(rows_of_all, rows)
    remaining = iter(rows_of_all)
    return [list(islice(remaining, count)) for count in rows]


def forward(call: Call) -> Any:
    """Runs one call on its module."""
    with torch.no_grad():
        return call.run()
