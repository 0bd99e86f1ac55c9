"""One call of several, and several results of one.

Calls merge only if every argument agrees in structure, shape and dtype; nothing is dropped.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from handlers.engine.pipeline_job import Call, DecodeCall, UNetCall

# VAEs that decode each picture by itself and use no generator, so that their calls merge whatever theirs are
DETERMINISTIC = ("AutoencoderKL", "AutoencoderTiny")


def _signature(value: Any) -> Hashable:
    """What two arguments must have in common to be merged."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.shape[1:], value.dtype)
    if isinstance(value, Mapping):
        return ("dict", tuple((name, _signature(item)) for name, item in sorted(value.items())))
    if value is None or isinstance(value, (bool, int, float, str)):
        return ("value", type(value), value)
    return ("opaque", id(value))


def merge_key(call: UNetCall | DecodeCall) -> tuple[Any, ...]:
    """Calls with equal keys can run in one."""
    if isinstance(call, DecodeCall):
        options = {name: value for name, value in call.kwargs.items() if name != "generator" and value is not None}
        mergeable = type(call.vae).__name__ in DETERMINISTIC and options.keys() <= {"return_dict"}
        return (id(call.vae), _signature(call.sample), _signature(options), None if mergeable else id(call))
    sample = call.sample
    mergeable = all(
        tensor.dim() > 0 and tensor.shape[0] == call.rows
        for value in call.kwargs.values()
        for tensor in (value.values() if isinstance(value, Mapping) else [value])
        if isinstance(tensor, torch.Tensor)
    )
    timestep = call.timestep
    return (
        id(call.unet),
        (tuple(sample.shape[1:]), sample.dtype),
        timestep.dtype if isinstance(timestep, torch.Tensor) else type(timestep),
        tuple((name, _signature(value)) for name, value in sorted(call.kwargs.items())),
        None if mergeable else id(call),
    )


def _concatenate(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {name: _concatenate([value[name] for value in values]) for name in first}
    return first


def merge(calls: Sequence[Any]) -> Any:
    """One call for all of `calls`, which have equal merge keys. A single call stays exactly as it is."""
    first = calls[0]
    if len(calls) == 1:
        return first
    sample = torch.cat([call.sample for call in calls])
    if isinstance(first, DecodeCall):
        return replace(first, sample=sample)
    # each row gets its own job's timestep: (rows,)
    timestep = torch.cat([call.with_timesteps().timestep for call in calls])
    kwargs = {name: _concatenate([call.kwargs[name] for call in calls]) for name in first.kwargs}
    return replace(first, sample=sample, timestep=timestep, kwargs=kwargs)


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
