"""One open request from its bytes to its answer: parsed in a pool, drawn by its jobs, encoded in the pool."""

import json
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from handlers import images
from handlers.errors import DeadlineExceeded, InternalError, OutOfMemory, RequestError, error_line
from handlers.pipeline_job import PipelineJob
from handlers.request import GenerationRequest
from handlers.step_batcher import Slot

logger = logging.getLogger(__name__)


class Generation:
    """One request. `poll` moves it on; `slots` are its jobs; `line` is what TorchServe hands to the client next.

    Args:
        parse: reads and validates the request; runs in `pool`.
        pool: for what must not hold up the step: parsing and encoding.
        pipeline: the stock pipeline of the request's task.
        deadline: when the client stops waiting, in seconds since the epoch.
    """

    def __init__(
        self,
        parse: Callable[[], GenerationRequest],
        pool: ThreadPoolExecutor,
        pipeline: Any,
        deadline: float = math.inf,
    ) -> None:
        self._pool = pool
        self._pipeline = pipeline
        self._deadline = deadline
        self._parsing: Future[GenerationRequest] | None = pool.submit(parse)
        self._encoding: dict[Slot, Future[dict[str, Any]]] = {}
        self._request: GenerationRequest | None = None
        self._reported: tuple[int, int] | None = None
        self.slots: list[Slot] = []
        self.last_step = 0
        self.ending: bytes | None = None  # the last line, once there is one
        self.failed = False

    @property
    def pending(self) -> list["Future[Any]"]:
        """What the pool still works on for this request."""
        futures: list[Future[Any]] = [f for f in self._encoding.values() if not f.done()]
        return futures if self._parsing is None else [self._parsing]

    def poll(self) -> None:
        """Takes up what the pool and the jobs have finished; ends the request once all is there or something failed."""
        if self.ending is not None:
            return
        try:
            if time.time() > self._deadline:
                raise DeadlineExceeded(
                    "The deadline passed before the picture was done: ask for less, or allow more time."
                )
            if self._parsing is not None and self._parsing.done():
                self._request, self._parsing = self._parsing.result(), None
                self._create_jobs(self._request)
            for index, slot in enumerate(self.slots):
                if slot.job.error is not None:
                    raise as_request_error(slot.job.error)
                if slot.job.ended and slot not in self._encoding:
                    self._encoding[slot] = self._pool.submit(self._encode, index, slot.job.result)
            if self.slots and len(self._encoding) == len(self.slots) and not self.pending:
                answer = {"status": "success", "images": [self._encoding[slot].result() for slot in self.slots]}
                self.ending = b'{"result": ' + json.dumps(answer).encode() + b"}\n"
        except Exception as error:  # whatever went wrong in the pool or a pipeline ends this request and no other
            self.cancel()
            self.failed = True
            self.ending = error_line(as_request_error(error))

    def cancel(self) -> None:
        """Ends every job; nobody waits for the picture any more."""
        if self._parsing is not None:
            self._parsing.cancel()
            self._parsing = None
        for slot in self.slots:
            slot.job.cancel()
        self.slots = []

    def line(self) -> bytes:
        """A progress line if there is progress since the last one, else a blank line (TorchServe wants an answer)."""
        progress = min(
            ((slot.job.steps_done, slot.job.total_steps) for slot in self.slots if slot.job.total_steps), default=None
        )
        if progress is None or progress == self._reported or progress[0] == 0:
            return b"\n"
        self._reported = progress
        return json.dumps({"progress": {"step": progress[0], "of": progress[1]}}).encode() + b"\n"

    def _create_jobs(self, request: GenerationRequest) -> None:
        for i in range(request.num_outputs):
            job = PipelineJob(self._pipeline, pipeline_arguments(request, request.seed + i))
            self.slots.append(Slot(job, owner=self))

    def _encode(self, index: int, output: Any) -> dict[str, Any]:
        """Image `index` of the contract's answer, from the pipeline's output."""
        request = self._request
        assert request is not None
        flagged = bool(output.nsfw_content_detected and output.nsfw_content_detected[0])
        image = output.images[0]
        if request.init_image is not None:
            image = images.fit(image, request.init_image.size)
            if request.mask_image is not None and not flagged:
                image = images.paste_back(request.init_image, image, request.mask_image)
        return {
            "base64": images.encode_png(image),
            "seed": request.seed + index,
            "mimetype": "image/png",
            "mime_type": "image/png",
            "nsfw": flagged,
        }


def as_request_error(error: BaseException) -> RequestError:
    """The request's failure for what a pipeline raised; the log gets what the client need not see."""
    if isinstance(error, RequestError):
        return error
    logger.error("A request failed.", exc_info=error)
    no_room = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)
    if no_room:
        return OutOfMemory("There is not enough memory for this picture: try a smaller one, or a lower num_outputs.")
    return InternalError("The picture could not be drawn: a fault of the server, which its log describes.")


def pipeline_arguments(request: GenerationRequest, seed: int) -> dict[str, Any]:
    """The arguments of the stock pipeline's `__call__` for one image of `request`."""
    arguments: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "eta": request.eta,
        # on the CPU whatever the device: the same seed starts from the same noise everywhere
        "generator": torch.Generator("cpu").manual_seed(seed),
    }
    size = request.width, request.height
    if request.task in ("txt2img", "masking"):
        arguments |= {"width": size[0], "height": size[1]}
    if request.init_image is not None:
        arguments |= {"image": images.fit(request.init_image, size), "strength": request.strength}
    if request.mask_image is not None:
        arguments["mask_image"] = request.mask_image.resize(size, Image.Resampling.BILINEAR)
    return arguments
