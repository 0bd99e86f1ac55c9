"""StableDiffusionHandler: TorchServe's calls on one side, the engine on the other.

With continuous batching TorchServe calls `handle` again and again with every open request. Each call hands new requests
to the engine, drops those whose client has gone, and answers every request with what there is to say, if only a blank
line.

Public: `StableDiffusionHandler.initialize` and `.handle`, which TorchServe calls; `.worker` and `.engine`, for tests
and benchmarks.
"""

import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from handlers.catalogue import Catalogue
from handlers.engine import scheduling
from handlers.engine.generation import Generation
from handlers.engine.loop import Engine
from handlers.errors import ModelError, RequestError
from handlers.hardware.device import is_out_of_memory
from handlers.installation import Installation
from handlers.wire import COUNT, DESCRIBE, LINES_TYPE, Failed, RequestHead, Result, start_failure_line
from handlers.worker import Worker

logger = logging.getLogger(__name__)


class StableDiffusionHandler:
    """Serves `tasks` with one model. An archive's entry point is a subclass that names its tasks."""

    tasks: tuple[str, ...] = ()

    def initialize(self, context: Any) -> None:
        """Loads the model and generates a first image. TorchServe calls it once, when the worker starts."""
        self.generations: dict[str, Generation] = {}
        settings = (context.model_yaml_config or {}).get("handler", {})
        gpu_id, threads = context.system_properties.get("gpu_id"), torch.get_num_threads()
        try:
            self.engine = Engine(partial(Worker.load, self.tasks, settings, gpu_id, threads))
        except Exception as error:  # a model may fail in any way, and whoever asked for it should know
            reason = _reason(error)
            print(start_failure_line(reason), file=sys.stderr, flush=True)
            if folder := Installation.find(settings.get("home", "")).catalogue:
                Catalogue(folder).tell_failure(context.model_name, reason)
            raise RuntimeError(reason) from error  # the one kind of error that TorchServe's worker reports
        self.worker = self.engine.loaded
        # TorchServe's worker logs two lines a call, which its frontend parses one by one
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger(scheduling.__name__).setLevel(
            logging.DEBUG if self.worker.config.log_merging else logging.NOTSET
        )

    def handle(self, data: Sequence[dict[str, Any]], context: Any) -> list[bytes]:
        """Whole lines for each open request. Never raises: one bad request must not fail its neighbours."""
        request_ids = [context.get_request_id(i) for i in range(len(data))]
        # 1. drop the requests whose clients have gone
        for gone in self.generations.keys() - set(request_ids):
            self.engine.cancel(self.generations.pop(gone))
        # 2. open the new ones
        new: set[str] = set()
        last_lines: dict[str, bytes] = {}
        for i, request_id in enumerate(request_ids):
            if request_id not in self.generations:
                new.add(request_id)
                context.set_response_content_type(i, LINES_TYPE)
                if line := self._open(request_id, data[i], partial(context.get_request_header, i)):
                    last_lines[request_id] = line
        # 3. let the engine work, unless an answer is ready
        has_news = bool(last_lines) or any(g.ending is not None for g in self.generations.values())
        self.engine.wait(has_news)
        # 4. answer every request
        last_lines |= self._take_ended()
        # None = a plain reply: TorchServe writes no HTTP head for a first answer that is also the last chunk
        verdicts = [(None if rid in new else True) if rid in last_lines else False for rid in request_ids]
        context.stopping_criteria = [partial(_verdict, verdict) for verdict in verdicts]
        # blank where there is nothing to say: TorchServe wants an answer in any case
        return [
            last_lines[rid] if rid in last_lines else self.generations[rid].progress() or b"\n" for rid in request_ids
        ]

    def _open(self, request_id: str, data: dict[str, Any], header: Any) -> bytes | None:
        """Opens a request. Returns its last line if it has one already: an answer that takes no steps, or a refusal."""
        try:
            head = RequestHead.read(header)
        except ValueError as error:
            return Failed(400, str(error)).line()
        try:
            if head.task == DESCRIBE:
                return Result(json.dumps(self.worker.describe(len(self.generations))).encode()).line()
            if head.task == COUNT:
                return Result(json.dumps(self.worker.count(data, head)).encode()).line()
            generation = self.worker.open(data, head)
        except RequestError as error:
            return Failed(error.status, error.message).line()
        except Exception:  # such as a folder of models that goes away while it is listed
            logger.exception("Request %s failed.", request_id)
            return Failed(500, "This is a fault of the server; its log has the cause.").line()
        self.generations[request_id] = generation
        self.engine.open(generation)
        return None

    def _take_ended(self) -> dict[str, bytes]:
        """The last lines of the requests that have ended: all failures, and one result at most.

        TorchServe's decoder slows down quadratically on large replies, so further results wait for the next call.
        """
        over = [request_id for request_id, generation in self.generations.items() if generation.ending is not None]
        failed = [request_id for request_id in over if self.generations[request_id].error]
        succeeded = [request_id for request_id in over if request_id not in failed]
        ended = {request_id: self.generations.pop(request_id) for request_id in failed + succeeded[:1]}
        return {request_id: one.progress() + (one.ending or b"") for request_id, one in ended.items()}


def _reason(error: Exception) -> str:
    """Why a model could not be loaded, as a sentence."""
    causes = [error, *filter(None, (error.__cause__,))]
    if any(is_out_of_memory(cause) for cause in causes):
        return f"There is not enough memory for this model, on the GPU or on this machine: {error}"
    return str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"


def _verdict(verdict: bool | None, _: Any) -> bool | None:
    return verdict
