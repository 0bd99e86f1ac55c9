"""One open request from its bytes to its answer: parsed in a pool, drawn by its jobs, encoded in the pool.

The engine's thread moves it on, but the pool ends it with its last image, for which no step is waited for. The thread
of TorchServe's calls reads `ending`, `error` and `progress` alone.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from PIL import Image

from handlers.engine.pipeline_job import PipelineJob, UNetCall
from handlers.engine.step_batcher import Slot
from handlers.engine.timings import Stages
from handlers.errors import DeadlineExceeded, InternalError, InvalidRequest, OutOfMemory, RequestError
from handlers.hardware.device import is_out_of_memory
from handlers.pipelines.loading import scheduler
from handlers.pipelines.previews import PreviewMap, every
from handlers.request import images
from handlers.request.fields import GenerationRequest
from handlers.wire import Failed, Progress, Result, image_entry

logger = logging.getLogger(__name__)


class Generation:
    """One request. `poll` moves it on; `slots` are its jobs; `progress` and `ending` are what the client is told.

    Args:
        parse: reads and validates the request; runs in `pool`.
        admit: raises a RequestError for one that has no room; runs between two steps.
        pool: for what must not hold up the step: parsing and encoding.
        pipeline: the stock pipeline of the request's task.
        stages: told how long parsing and encoding take.
        deadline: when the client stops waiting, in seconds since the epoch.
        name: the request's id in the log.
        wants_progress: whether its lines tell of each step.
        preview_map: draws the small pictures that a request may want with its progress.
    """

    def __init__(
        self,
        parse: Callable[[], GenerationRequest],
        admit: Callable[[GenerationRequest], None],
        pool: ThreadPoolExecutor,
        pipeline: Any,
        stages: Stages,
        deadline: float = math.inf,
        name: str = "",
        wants_progress: bool = False,
        preview_map: PreviewMap | None = None,
    ) -> None:
        self._admit = admit
        self._name = name
        self._pool = pool
        self._pipeline = pipeline
        self._stages = stages
        self._deadline = deadline
        self.when_pool_is_done: Callable[[Generation], None] = lambda _: None
        self._preparing: Future[tuple[GenerationRequest, Mapping[str, Any]]] | None = self._in_pool(
            self._prepare, parse
        )
        self._encoding: dict[Slot, Future[None]] = {}
        self._encoded: dict[int, bytes] = {}  # by the number of the image
        self._request: GenerationRequest | None = None
        self._wants_progress = wants_progress
        self._progress = 0, 0  # steps done, steps in all
        self._reported = 0
        self._preview_map = preview_map
        self._previewing: Future[str] | None = None
        self.queued_since: float | None = time.monotonic()  # until its first job begins
        self.slots: list[Slot] = []
        self.last_step = 0
        self.ending: bytes | None = None  # the last line, once there is one
        self.error: RequestError | None = None  # what it failed with
        self._conclusion = threading.Lock()

    def _in_pool(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future = self._pool.submit(work, *arguments)
        future.add_done_callback(lambda _: self.when_pool_is_done(self))
        return future

    def _prepare(self, parse: Callable[[], GenerationRequest]) -> tuple[GenerationRequest, Mapping[str, Any]]:
        with self._stages.timed("parse"):
            request = parse()
            return request, pipeline_arguments(request, self._pipeline)

    def poll(self) -> None:
        """Takes up what the pool and the jobs have finished; ends the request if something failed."""
        if self.ending is not None:
            return
        try:
            if time.time() > self._deadline:
                raise DeadlineExceeded(
                    "The deadline passed before the picture was done: ask for less, or allow more time."
                )
            if self._preparing is not None and self._preparing.done():
                (self._request, arguments), self._preparing = self._preparing.result(), None
                self._admit(self._request)
                self._create_jobs(self._request, arguments)
            self._progress = min(
                ((slot.job.steps_done, slot.job.total_steps) for slot in self.slots if slot.job.total_steps),
                default=(0, 0),
            )
            for index, slot in enumerate(self.slots):
                if isinstance(slot.job.error, ValueError) and not slot.job.total_steps:
                    # what the pipeline checks before it draws: a combination that this model cannot do
                    raise InvalidRequest(f"The model cannot draw with these values: {slot.job.error}")
                if slot.job.error is not None:
                    raise slot.job.error
                if slot.job.ended and slot not in self._encoding:
                    self._encoding[slot] = self._in_pool(self._finish_image, index, slot.job.result)
            for future in self._encoding.values():
                if future.done():
                    future.result()  # raises what it raised
        except BaseException as error:  # whatever went wrong in the pool or a pipeline ends this request and no other
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Ends the request with what the pool or a pipeline raised."""
        self.cancel()
        failure = self._as_request_error(error)
        self._conclude(Failed(failure.status, failure.message).line(), failure)

    def _conclude(self, ending: bytes, error: RequestError | None = None) -> None:
        with self._conclusion:  # the last image and the deadline may come at once
            if self.ending is None:
                self.error, self.ending = error, ending  # in this order, for who looks at the ending first

    def cancel(self) -> None:
        """Ends every job; nobody waits for the picture any more."""
        if self._preparing is not None:
            self._preparing.cancel()
            self._preparing = None
        for slot in self.slots:
            slot.job.cancel()
        self.slots = []

    @property
    def has_progress(self) -> bool:
        """Whether the client waits for a step that was not told yet."""
        return self._wants_progress and self._progress[0] > self._reported

    def progress(self) -> bytes:
        """A line for each step since the last call, where the client wants them."""
        done, total = self._progress  # once: the engine goes on meanwhile
        if not self._wants_progress:
            return b""
        steps, self._reported = range(self._reported + 1, done + 1), max(done, self._reported)
        lines = [Progress(step, total) for step in steps]
        previewing = self._previewing
        if lines and previewing is not None and previewing.done() and previewing.exception() is None:
            lines[-1], self._previewing = replace(lines[-1], preview=previewing.result()), None
        return b"".join(line.line() for line in lines)

    def preview(self, slot: Slot, output: Any) -> None:
        """Has the pool draw, every few steps of the first picture, what the UNet's `output` for it shows so far."""
        request, shown, call = self._request, self._preview_map, slot.job.call
        wanted = self._wants_progress and request is not None and request.preview
        if shown is None or request is None or not wanted or not isinstance(call, UNetCall):
            return
        due = slot.job.steps_done % every(slot.job.total_steps) == 0
        # a pool that is behind gets no second one
        if due and slot is self.slots[0] and (self._previewing is None or self._previewing.done()):
            try:
                self._previewing = self._pool.submit(shown.draw, *shown.look(call, output, request.guidance_scale))
            except Exception:  # the picture itself is drawn all the same
                logger.exception("Request %s goes on without previews.", self._name)
                self._preview_map = None

    def _create_jobs(self, request: GenerationRequest, arguments: Mapping[str, Any]) -> None:
        for i in range(request.num_outputs):
            own = scheduler(self._pipeline, request.scheduler) if request.scheduler else None
            job = PipelineJob(self._pipeline, {**arguments, "generator": generator(request.seed + i)}, own)
            self.slots.append(Slot(job, owner=self))

    def _finish_image(self, index: int, output: Any) -> None:
        """Encodes image `index`; the last one ends the request."""
        assert self._request is not None
        self._encoded[index] = self._encode(self._request, index, output)
        if len(self._encoded) == self._request.num_outputs:
            self._conclude(Result.of_images([image for _, image in sorted(self._encoded.items())]).line())

    def _encode(self, request: GenerationRequest, index: int, output: Any) -> bytes:
        """Image `index` of the contract's answer as JSON, from the pipeline's output."""
        # pipelines without a checker of their own (SDXL) have no such attribute
        flagged = bool((getattr(output, "nsfw_content_detected", None) or [False])[0])
        image = images.fit(output.images[0], request.answer_size)
        if request.init_image is not None and request.mask_image is not None and not flagged:
            image = images.paste_back(request.init_image, image, request.mask_image)
        with self._stages.timed("encode"):
            png = images.encode_png(image)
        return image_entry(png, request.seed + index, flagged)

    def _as_request_error(self, error: BaseException) -> RequestError:
        """The request's failure for what the pool or a pipeline raised; the log gets what the client need not see."""
        if isinstance(error, RequestError):
            return error
        logger.error("Request %s failed.", self._name, exc_info=error)
        if is_out_of_memory(error):
            return OutOfMemory(
                "There is not enough memory for this picture: try a smaller one, or a lower num_outputs."
            )
        return InternalError("The picture could not be drawn: a fault of the server, which its log describes.")


def generator(seed: int) -> torch.Generator:
    """On the CPU whatever the device: the same seed starts from the same noise everywhere."""
    return torch.Generator("cpu").manual_seed(seed)


def pipeline_arguments(request: GenerationRequest, pipeline: Any) -> dict[str, Any]:
    """The arguments of the stock pipeline's `__call__` for any image of `request`, but for the generator.

    Without those that this family's pipeline has no use for: latent consistency models take no negative prompt.
    """
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "eta": request.eta,
    }
    size = request.width, request.height
    if request.task in ("txt2img", "masking"):
        arguments |= {"width": size[0], "height": size[1]}
    if request.init_image is not None:
        arguments |= {"image": images.fit(request.init_image, size), "strength": request.strength}
    if request.mask_image is not None:
        arguments["mask_image"] = request.mask_image.resize(size, Image.Resampling.BILINEAR)
    taken = signature(pipeline.__call__).parameters
    return {name: value for name, value in arguments.items() if name in taken}
