"""From a request's bytes to what its jobs need; for the threads of the pool."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from handlers.config import HandlerConfig
from handlers.engine.large_images import LARGE
from handlers.engine.pipeline_job import PipelineJob
from handlers.engine.shared import Shared
from handlers.errors import InvalidRequest
from handlers.imaging.documents import model_image
from handlers.imaging.files import TooManyPixels
from handlers.imaging.upscaling import LATENTS, UPSCALERS
from handlers.pipelines.arguments import pipeline_arguments, without_effect
from handlers.pipelines.controlnets import guided
from handlers.pipelines.loading import ServedPipeline
from handlers.pipelines.loras import Lend
from handlers.pipelines.named_files import NamedFile
from handlers.pipelines.noise import generator
from handlers.pipelines.plain_prompts import AnyPrompts, prompts_for
from handlers.pipelines.schedulers import scheduler
from handlers.request.fields import GenerationRequest, parse_request, read_fields
from handlers.request.hires import Hires
from handlers.request.mask import parse_mask
from handlers.request.upscale import parse_upscale
from handlers.wire import CONTROL_NUMBERS, MASK, UPSCALE, RequestHead


@dataclass(frozen=True)
class IncomingRequest:
    """A request as TorchServe hands it over: what it is for, its body or fields, and the proxy's headers."""

    task: str
    data: Mapping[str, Any]
    head: RequestHead


@dataclass(frozen=True)
class ParsedImage:
    """An image that needs no model: a mask, or one to enlarge.

    Attributes:
        request: whose init image is the answer's.
        source: the upscaler's file, and the image as it sees it; None without one.
    """

    request: GenerationRequest
    source: tuple[NamedFile, Image.Image] | None = None


@dataclass(frozen=True)
class Parsed:
    """What a request asks for, or its second pass.

    Attributes:
        pipeline: that its jobs run.
        lend: gives its jobs the parts that its LoRAs change.
        crops: the pipeline's arguments for each crop of an image.
        second: the second pass, whose arguments have no image yet.
        upscaler: the file that enlarges the image for it; None for what is built in.
        load_nets: its jobs' ControlNets.
    """

    request: GenerationRequest
    pipeline: Any
    prompts: AnyPrompts
    lend: Lend
    crops: Sequence[Mapping[str, Any]]
    second: "Parsed | None" = None
    upscaler: NamedFile | None = None
    load_nets: Callable[[], Sequence[Any]] | None = None

    def job(self, index: int, arguments: Mapping[str, Any]) -> PipelineJob:
        """For image `index`; `arguments` are those of a crop."""
        request = self.request
        own = scheduler(self.pipeline, request.sampler) if request.sampler else None
        start = generator(request.seed_of(index), request.variation_of(index))
        arguments = {**arguments, "generator": start}
        return PipelineJob(self.pipeline, arguments, own, self.prompts, self.lend, self.load_nets)


def parse_small(incoming: IncomingRequest, served: ServedPipeline, shared: Shared) -> Parsed | ParsedImage | int:
    """As `parse`; for a request with a large image only the number of its pixels."""
    most = shared.config.max_image_pixels
    try:
        return parse(incoming, served, shared, min(most, LARGE))
    except TooManyPixels as error:
        # a request that has too much altogether is told so
        return error.pixels if error.pixels <= most else parse(incoming, served, shared)


def parse(
    incoming: IncomingRequest, served: ServedPipeline, shared: Shared, max_image_pixels: int | None = None
) -> Parsed | ParsedImage:
    """Raises InvalidRequest or TooLarge.

    Args:
        max_image_pixels: instead of the configured ones.
    """
    config: HandlerConfig = replace(shared.config, max_image_pixels=max_image_pixels or shared.config.max_image_pixels)
    with shared.timings.timed("parse"):
        fields = read_fields(incoming.data, incoming.head.form_type, config.max_fields)
        if incoming.task == MASK:
            return ParsedImage(parse_mask(fields, config))
        # the folder is looked at for requests that name one
        upscalers = shared.upscalers
        names = upscalers.names() if {"upscaler", "hires_upscaler"} & fields.keys() else UPSCALERS
        if not served.enlarges_latents:
            names = [name for name in names if name not in LATENTS]
        if incoming.task == UPSCALE:
            asked = parse_upscale(fields, config, names)
            document, file = asked.document, upscalers.file(asked.upscaler)
            whole = (0, 0, *document.size)
            return ParsedImage(asked.answer, (file, model_image(document, whole, document.size)) if file else None)
        nets = shared.controlnets.names() if any("controlnet" + number in fields for number in CONTROL_NUMBERS) else ()
        request = parse_request(incoming.task, fields, config, served.defaults, served.schedulers, names, nets)
        parsed = _pass(request, served.pipeline, served, shared)
        if request.hires is None:
            return parsed
        parsed = replace(parsed, upscaler=upscalers.file(request.hires.upscaler))
        return _with_second_pass(parsed, request.hires, served, shared)


def _pass(request: GenerationRequest, pipeline: Any, served: ServedPipeline, shared: Shared) -> Parsed:
    prompts = prompts_for(pipeline, request.prompt, request.negative_prompt, served.embeddings)
    loras, doubts = served.loras.choose(prompts.loras)
    doubts += [*without_effect(request, pipeline), *served.counter.warnings(prompts)]
    request = replace(request, warnings=(*request.warnings, *prompts.warnings, *doubts))
    load_nets = None
    guides: list[tuple[Image.Image, ...]] = [()] * len(request.crops)
    if request.controls:
        whole = request.init_image.size if request.init_image else request.crops[0].box[2:]
        of_controls = [control.of_crops(whole, request.crops) for control in request.controls]
        guides = [*zip(*of_controls, strict=True)]
        files = [shared.controlnets.file(control.net) for control in request.controls]
        load_nets = partial(shared.controlnets.load, files, pipeline)
        pipeline = guided(pipeline)
    crops = [pipeline_arguments(request, pipeline, *of_crop) for of_crop in zip(request.crops, guides, strict=True)]
    return Parsed(request, pipeline, prompts, partial(served.loras.lend, loras), crops, load_nets=load_nets)


def _with_second_pass(first: Parsed, hires: Hires, served: ServedPipeline, shared: Shared) -> Parsed:
    """The first pass without what is for the final image alone, and with the second one."""
    request = replace(
        first.request, task="img2img", crops=(hires.crop,), hires=None, warnings=(), strength=hires.strength,
        prompt=hires.prompt, negative_prompt=hires.negative_prompt, guidance_scale=hires.guidance_scale,
        num_inference_steps=hires.num_inference_steps, sampler=hires.sampler,
    )  # fmt: skip
    try:
        second = _pass(request, served.img2img, served, shared)
    except InvalidRequest as error:  # the first pass was taken
        raise InvalidRequest(f"In hires_prompt or hires_negative_prompt: {error}") from None
    # what the second one uses was not sent in vain
    own = without_effect(first.request, first.pipeline)
    told = [
        f"In the first pass: {text}" if text in own and text not in second.request.warnings else text
        for text in first.request.warnings
    ]
    more = [f"In the second pass: {text}" for text in second.request.warnings if text not in told]
    pipeline = copy.copy(first.pipeline)
    # past DiffusionPipeline.__setattr__; a black image would not be what the second pass is for
    pipeline.__dict__["safety_checker"] = None
    latent = {"output_type": "latent"} if hires.upscaler in LATENTS else {}
    return replace(
        first,
        request=replace(first.request, warnings=(*told, *more)),
        pipeline=pipeline,
        crops=[{**crop, **latent} for crop in first.crops],
        second=second,
    )
