"""A stock diffusers pipeline as a coroutine that pauses at every call of its denoiser, and before its VAE decodes.

The pipeline's own `__call__` runs unmodified in a greenlet. Either the owner runs or one of its jobs, so nothing races
for the modules that jobs share (tokenizer, text encoder, VAE). Jobs have no threads of their own: OpenMP keeps a team
of workers for every thread that computes, and with more workers than cores they stop spinning between two small
operations, which doubled the time of a step (docs/engine.md).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from diffusers import MultiControlNetModel
from greenlet import getcurrent, greenlet

from handlers.forward.adapters import Adapters
from handlers.forward.calls import ControlCall, DecodeCall, DenoiserCall
from handlers.pipelines.families import denoiser_name
from handlers.pipelines.loras import Lend, LentParts
from handlers.pipelines.plain_prompts import AnyPrompts
from handlers.pipelines.previews import Stepped
from handlers.pipelines.schedulers import OVERRIDDEN, without_waiting


class Cancelled(BaseException):
    """Raised inside a job's pipeline to end it. No `except Exception` on the way catches it."""


class PausingDenoiser:
    """Stands in for a pipeline's UNet or transformer: a call pauses the job; other attributes are the real module's."""

    def __init__(self, module: Any, job: "PipelineJob") -> None:
        self._module = module
        self._job = job

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._job._pause(DenoiserCall.of(self._module, args, kwargs, self._job.adapters))

    def cache_context(self, *_: Any, **__: Any) -> AbstractContextManager[None]:
        """For diffusers' caches between steps, of which none is on: jobs would overwrite each other's context."""
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _pausing_vae(vae: Any, job: "PipelineJob") -> Any:
    """A VAE on the same weights whose `decode` pauses the job. It is a module: pipelines ask it for its device."""

    def decode(latents: torch.Tensor, **kwargs: Any) -> Any:
        return job._pause(DecodeCall(vae, latents.to(vae.dtype), kwargs))

    own = copy.copy(vae)
    own.encode, own.decode = vae.encode, decode
    if vae.dtype == torch.float32:  # it stays so, though pipelines would convert it: other jobs use it at their pauses
        own.to = lambda *_, **__: own
    return own


def _pausing_controlnet(net: Any, job: "PipelineJob") -> Any:
    """A ControlNet on the same weights whose call pauses the job. It is a module: pipelines ask what kind it is."""
    own = copy.copy(net)
    own.forward = lambda *args, **kwargs: job._pause(ControlCall.of(net, args, kwargs))
    return own


class PipelineJob:
    """One image: `advance` runs the pipeline up to its denoiser's next call, to the VAE's decoding, or to its end.

    Args:
        arguments: of the pipeline's `__call__`.
        scheduler: the job's own, instead of a copy of the pipeline's.
        prompts: what the start makes of the prompts in `arguments`; None to pass them on as they are.
        lend: gives the pipeline the parts that its LoRAs change, for as long as it runs.
        load_nets: the ControlNets of a pipeline that is to have some.

    Attributes:
        adapters: that the denoiser's calls pass through.
        call: the call of the denoiser or VAE that the job is paused at; None before the start and after the end.
        steps_done, total_steps: answered steps, and steps in all (0 until the first).
        stepped: a transformer's last step, for previews; None before the first one's end.
        result: the pipeline's output, once `ended` without an `error`.
        error: the exception that the pipeline raised.
    """

    def __init__(
        self,
        pipeline: Any,
        arguments: Mapping[str, Any],
        scheduler: Any = None,
        prompts: AnyPrompts | None = None,
        lend: Lend = lambda: nullcontext(LentParts()),
        load_nets: Callable[[], Sequence[Any]] | None = None,
    ) -> None:
        self._pipeline = copy.copy(pipeline)
        # past DiffusionPipeline.__setattr__, which would look up the stand-in's class and library
        own = without_waiting(scheduler or copy.deepcopy(pipeline.scheduler))
        name = denoiser_name(pipeline)
        self._pipeline.__dict__.update(scheduler=own, vae=_pausing_vae(pipeline.vae, self))
        self._pipeline.__dict__[name] = PausingDenoiser(getattr(pipeline, name), self)
        self.stepped: Stepped | None = None
        if name == "transformer":
            own.step = self._noting(own.step)
        self._arguments = arguments
        self._prompts = prompts
        self._lend = lend
        self._load_nets = load_nets
        self._nets: list[Any] = []  # stand-ins for them
        self.adapters: Adapters | None = None
        # whether its start encodes an image with the VAE; one that guides txt2img is not encoded
        self.has_image = "image" in arguments and (load_nets is None or "strength" in arguments)
        self._greenlet = greenlet(self._run)
        self.call: DenoiserCall | DecodeCall | None = None
        self.steps_done = 0
        self.total_steps = 0
        self._latents: Any = None  # of the last answered step
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def started(self) -> bool:
        return self._greenlet.dead or bool(self._greenlet)

    def start(self) -> None:
        """Runs the pipeline to its denoiser's first call: encodes the prompt and the init image, if there is one."""
        self._continue(self._greenlet.switch)

    def advance(self, output: Any) -> None:
        """Answers the paused call with `output` and runs on to the next one, or to the end."""
        if isinstance(self.call, DenoiserCall) and self.call.predicts:
            # guidance may take two calls of a step, each with the same latents
            self.steps_done += self.call.sample is not self._latents
            self._latents = self.call.sample
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
        self._greenlet.parent = getcurrent()  # the job pauses for the greenlet that resumes it
        # Grad mode belongs to the thread, so to all greenlets: every job must find it off, and leaves it off.
        with torch.no_grad():
            switch(*arguments)

    def _pause(self, call: DenoiserCall | DecodeCall) -> Any:
        if not self.total_steps:
            self.total_steps = self._pipeline.num_timesteps
        self.call = call
        return self._greenlet.parent.switch()

    def _noting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A scheduler's `step` that keeps what it was called with."""

        @wraps(step)
        def noting(predicted: Any, timestep: Any, latents: Any, *args: Any, **kwargs: Any) -> Any:
            self.stepped = Stepped(predicted, float(timestep), latents, self._unpacked)
            return step(predicted, timestep, latents, *args, **kwargs)

        return noting

    def _unpacked(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of a step as (1, channels, height, width)."""
        if latents.dim() > 3:
            return latents
        pipeline, size = self._pipeline, (self._arguments["height"], self._arguments["width"])
        unpacked: torch.Tensor = pipeline._unpack_latents(latents, *size, pipeline.vae_scale_factor)
        return unpacked

    def _run(self) -> None:
        try:
            with self._lend() as parts:
                self.adapters = parts.adapters
                self._pipeline.__dict__.update(parts.encoders)
                if self._load_nets is not None:
                    self._nets = [_pausing_controlnet(net, self) for net in self._load_nets()]
                    several = len(self._nets) > 1
                    self._pipeline.__dict__["controlnet"] = (
                        MultiControlNetModel(self._nets) if several else self._nets[0]
                    )
                arguments = self._arguments
                if self._prompts is not None:
                    arguments = self._prompts.arguments_for(self._pipeline, arguments)
                self.result = self._pipeline(**arguments)
        except BaseException as error:  # the owner knows which request it ends
            self.error = error
        finally:
            self.ended = True
            # reference cycles, which would keep this job until a garbage collection
            for name in OVERRIDDEN:
                self._pipeline.scheduler.__dict__.pop(name, None)
            self._pipeline.vae.__dict__.pop("to", None)
            for net in self._nets:
                net.__dict__.pop("forward")
            self._latents = self.stepped = None
            del self._pipeline, self._arguments, self._prompts, self._lend, self._load_nets, self._nets
