"""A stock diffusers pipeline as a coroutine that pauses at every UNet call, and before its VAE decodes the picture.

The pipeline's own `__call__` runs unmodified in a greenlet: either the owner runs or one of its jobs, so what the
jobs share (tokenizer, text encoder, VAE) is never raced. Not in a thread each: OpenMP keeps a team of workers for
every thread that computes, and as soon as there are more of them than cores they stop spinning between two small
operations, which doubled the time of a step (docs/architecture.md).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from greenlet import getcurrent, greenlet


class Cancelled(BaseException):
    """Raised inside a job's pipeline to end it. No `except Exception` on the way may stop it."""


class Call:
    """One paused call; `sample` is (rows, channels, latent height, latent width)."""

    sample: Any
    kwargs: Mapping[str, Any]

    @property
    def rows(self) -> int:
        return int(self.sample.shape[0])

    @property
    def area(self) -> int:
        """The latent pixels of a row."""
        return int(self.sample.shape[-1] * self.sample.shape[-2])

    def run(self) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class UNetCall(Call):
    """Of a UNet."""

    unet: Any
    sample: Any
    timestep: Any
    kwargs: Mapping[str, Any]

    def run(self) -> Any:
        # off the CPU the UNet would copy the timestep to the sample's device, and wait for it
        timestep = self.timestep if self.sample.device.type == "cpu" else self.with_timesteps().timestep
        return self.unet(self.sample, timestep, **self.kwargs)

    def with_timesteps(self) -> "UNetCall":
        """The call with a timestep for each row, on the sample's device."""
        timestep = torch.as_tensor(self.timestep)
        if timestep.device == self.sample.device:
            return replace(self, timestep=timestep.expand(self.rows))
        # filled in there: a copy would wait for the card
        filled = torch.full((self.rows,), timestep.item(), dtype=timestep.dtype, device=self.sample.device)
        return replace(self, timestep=filled)

    def tensors(self) -> Iterator[torch.Tensor]:
        """All tensors, always in the same order."""
        for value in (self.sample, self.timestep, *(self.kwargs[name] for name in sorted(self.kwargs))):
            for item in [value[name] for name in sorted(value)] if isinstance(value, Mapping) else [value]:
                if isinstance(item, torch.Tensor):
                    yield item

    def with_tensors(self, tensors: Iterable[torch.Tensor]) -> "UNetCall":
        """The call with others in their place, in the order of `tensors`."""
        given = iter(tensors)

        def put(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: put(value[name]) for name in sorted(value)}
            return next(given) if isinstance(value, torch.Tensor) else value

        return UNetCall(self.unet, put(self.sample), put(self.timestep), put(self.kwargs))


@dataclass(frozen=True)
class DecodeCall(Call):
    """Of a VAE's `decode`."""

    vae: Any
    sample: Any
    kwargs: Mapping[str, Any]

    def run(self) -> Any:
        return self.vae.decode(self.sample, **self.kwargs)


class PausingUNet:
    """Stands in for a pipeline's UNet: a call pauses the job, every other attribute is the real module's."""

    def __init__(self, unet: Any, job: "PipelineJob") -> None:
        self._unet = unet
        self._job = job

    def __call__(self, sample: Any, timestep: Any, **kwargs: Any) -> Any:
        return self._job._pause(UNetCall(self._unet, sample, timestep, kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def _pausing_vae(vae: Any, job: "PipelineJob") -> Any:
    """A VAE on the same weights whose `decode` pauses the job; a module, since pipelines ask theirs for the device."""

    def decode(latents: torch.Tensor, **kwargs: Any) -> Any:
        return job._pause(DecodeCall(vae, latents.to(vae.dtype), kwargs))

    own = copy.copy(vae)
    own.encode, own.decode = vae.encode, decode
    if vae.dtype == torch.float32:  # stays so, whatever a pipeline would turn it to: others use it at their pauses
        own.to = lambda *_, **__: own
    return own


class PipelineJob:
    """One image: `advance` runs the pipeline up to its next UNet call, to the VAE's decoding, or to its end.

    Args:
        arguments: of the pipeline's `__call__`.
        scheduler: the job's own, in place of a copy of the pipeline's.

    Attributes:
        call: what the UNet or the VAE is asked for at this pause; None before the start and after the end.
        steps_done, total_steps: UNet calls answered, and UNet calls in all (0 until the first).
        result: the pipeline's output, once `ended` without an `error`.
        error: what the pipeline raised.
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any], scheduler: Any = None) -> None:
        self._pipeline = copy.copy(pipeline)
        # past DiffusionPipeline.__setattr__, which would look up the stand-in's class and library
        own = _with_timesteps_on_cpu(scheduler or copy.deepcopy(pipeline.scheduler))
        self._pipeline.__dict__.update(
            scheduler=own, unet=PausingUNet(pipeline.unet, self), vae=_pausing_vae(pipeline.vae, self)
        )
        self._arguments = arguments
        self.has_image = "image" in arguments  # its start encodes an image with the VAE
        self._greenlet = greenlet(self._run)
        self.call: UNetCall | DecodeCall | None = None
        self.steps_done = 0
        self.total_steps = 0
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def started(self) -> bool:
        return self._greenlet.dead or bool(self._greenlet)

    def start(self) -> None:
        """Runs the pipeline to its first UNet call: encodes the prompt and, where there is one, the init image."""
        self._continue(self._greenlet.switch)

    def advance(self, output: Any) -> None:
        """Answers the paused call with `output` and runs on to the next one, or to the end."""
        self.steps_done += isinstance(self.call, UNetCall)
        self._continue(self._greenlet.switch, output)

    def cancel(self, error: BaseException | None = None) -> None:
        """Ends the job at its pause; `error` is kept as the reason. A job that ended already stays as it is."""
        if self.ended:
            return
        if self.started:
            self._continue(self._greenlet.throw, Cancelled())
        self.ended, self.error = True, error

    def _continue(self, switch: Callable[..., Any], *arguments: Any) -> None:
        self.call = None
        self._greenlet.parent = getcurrent()  # whoever goes on with the job is who it pauses for
        # Grad mode belongs to the thread, so to all greenlets: every job has to find it off and leaves it off.
        with torch.no_grad():
            switch(*arguments)

    def _pause(self, call: UNetCall | DecodeCall) -> Any:
        if not self.total_steps:
            self.total_steps = self._pipeline.num_timesteps
        self.call = call
        return self._greenlet.parent.switch()

    def _run(self) -> None:
        try:
            self.result = self._pipeline(**self._arguments)
        except BaseException as error:  # handed to the owner, who knows which request it ends
            self.error = error
        finally:
            self.ended = True
            # they would hold themselves, and this job, for the collector
            self._pipeline.scheduler.__dict__.pop("set_timesteps", None)
            self._pipeline.vae.__dict__.pop("to", None)
            del self._pipeline, self._arguments


def _with_timesteps_on_cpu(scheduler: Any) -> Any:
    """Keeps a scheduler's timesteps off the card: it looks one up at each step, which would wait for the card."""
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)
    def on_cpu(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **options | {"device": "cpu"})

    scheduler.set_timesteps = on_cpu
    return scheduler
