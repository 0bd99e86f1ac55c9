"""From a request's bytes to what its jobs need; for the threads of the pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from handlers.config import HandlerConfig
from handlers.engine.large_images import LARGE
from handlers.engine.shared import Shared
from handlers.imaging.files import TooManyPixels
from handlers.pipelines.arguments import pipeline_arguments
from handlers.pipelines.loading import ServedPipeline
from handlers.pipelines.loras import Lend
from handlers.pipelines.prompts import Prompts
from handlers.request.fields import GenerationRequest, parse_request, read_fields
from handlers.wire import RequestHead


@dataclass(frozen=True)
class IncomingRequest:
    """A request as TorchServe hands it over: what it is for, its body or fields, and the proxy's headers."""

    task: str
    data: Mapping[str, Any]
    head: RequestHead


@dataclass(frozen=True)
class Parsed:
    """What a request asks for.

    Attributes:
        lend: gives its jobs the parts that its LoRAs change.
        crops: the pipeline's arguments for each crop of an image.
    """

    request: GenerationRequest
    prompts: Prompts
    lend: Lend
    crops: Sequence[Mapping[str, Any]]


def parse_small(incoming: IncomingRequest, served: ServedPipeline, shared: Shared) -> Parsed | int:
    """As `parse`; for a request with a large image only the number of its pixels."""
    most = shared.config.max_image_pixels
    try:
        return parse(incoming, served, shared, min(most, LARGE))
    except TooManyPixels as error:
        if error.pixels > most:
            raise
        return error.pixels


def parse(
    incoming: IncomingRequest, served: ServedPipeline, shared: Shared, max_image_pixels: int | None = None
) -> Parsed:
    """Raises InvalidRequest or TooLarge.

    Args:
        max_image_pixels: instead of the configured ones.
    """
    config: HandlerConfig = replace(shared.config, max_image_pixels=max_image_pixels or shared.config.max_image_pixels)
    with shared.timings.timed("parse"):
        fields = read_fields(incoming.data, incoming.head.form_type, config.max_fields)
        request = parse_request(incoming.task, fields, config, served.defaults, served.schedulers)
        prompts = Prompts(request.prompt, request.negative_prompt, served.embeddings)
        loras, doubts = served.loras.choose(prompts.loras)
        request = replace(request, warnings=(*request.warnings, *prompts.warnings, *doubts))
        crops = [pipeline_arguments(request, served.pipeline, crop) for crop in request.crops]
        return Parsed(request, prompts, partial(served.loras.lend, loras), crops)
