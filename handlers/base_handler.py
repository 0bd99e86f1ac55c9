"""StableDiffusionHandler: TorchServe's calls on one side, the engine on the other.

With continuous batching TorchServe calls `handle` again and again with every open request. Each call hands what is new
to the engine, drops what is gone, and answers every request with what there is to say, if only a blank line.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from handlers.config import HandlerConfig
from handlers.engine.decoder import Decoder
from handlers.engine.generation import Generation
from handlers.engine.loop import Engine
from handlers.engine.pipeline_job import UNetCall
from handlers.engine.step_batcher import RowLimit, StepBatcher
from handlers.engine.timings import Stages
from handlers.engine.warm_up import warm_up
from handlers.errors import InvalidRequest, ModelError, RequestError
from handlers.forward.cuda_graphs import GraphedForward
from handlers.forward.merging import forward
from handlers.forward.openvino import OpenVINOForward
from handlers.forward.side_stream import NoSideStream, SideStream
from handlers.hardware.device import choose_device, choose_dtype
from handlers.hardware.memory import Memory
from handlers.installation import Installation
from handlers.pipelines.loading import Served, load_pipelines, serve
from handlers.pipelines.sources import fetch, resolve_model
from handlers.request.fields import GenerationRequest, parse_request, read_fields
from handlers.wire import DESCRIBE, LINES_TYPE, Failed, RequestHead, Result, start_failure_line


class StableDiffusionHandler:
    """Serves `tasks` with one model. An archive's entry point is a subclass that names its tasks."""

    tasks: tuple[str, ...] = ()

    def initialize(self, context: Any) -> None:
        """Loads the model and draws a first picture. TorchServe calls it once, when the worker starts."""
        self.generations: dict[str, Generation] = {}
        self.threads = torch.get_num_threads()  # that a worker has which draws alone
        try:
            self.engine = Engine(partial(self._load, context))
        except ModelError as error:
            print(start_failure_line(str(error)), file=sys.stderr, flush=True)
            raise RuntimeError(str(error)) from error  # the one kind of error that TorchServe's worker reports
        # TorchServe's worker logs two lines a call, which its frontend parses one by one
        logging.getLogger().setLevel(logging.WARNING)

    def _load(self, context: Any) -> tuple[StepBatcher, Decoder]:
        self.config = HandlerConfig.from_mapping((context.model_yaml_config or {}).get("handler", {}))
        self.device = choose_device(self.config.device, context.system_properties.get("gpu_id"))
        self.dtype = choose_dtype(self.config.dtype, self.device)
        if self.config.openvino and (self.device.type, self.dtype) != ("cpu", torch.float32):
            raise ModelError("--openvino is for a CPU in float32: leave it out, or add --device cpu --dtype float32.")
        installed = Installation.find(self.config.home)
        self.served: dict[str, Served] = {}
        self.stages = Stages()
        for model, tasks in self._models().items():
            source = resolve_model(model, installed)
            path = fetch(source, installed, self.dtype != torch.float32, self.config.allow_pickle)
            pipelines = load_pipelines(path, tasks, self.device, self.dtype, self.config, installed.configs)
            self.stages.watch(next(iter(pipelines.values())))  # they share their modules
            self.served |= serve(source, path, pipelines)
        measured = warm_up(self.served, self.device)
        self.stages.reset()
        limit = RowLimit(measured.seconds_per_row, self.device.type == "cpu", self.config.max_batch_rows)
        graphed = self.config.cuda_graphs and self.device.type == "cuda"
        # in low-memory mode, modules come and go in the order of their calls
        stream = SideStream(self.device) if graphed and not self.config.low_memory else NoSideStream()
        self.memory = Memory(
            self.device, measured.native_area, measured.row_bytes, measured.image_bytes, isinstance(stream, SideStream)
        )
        self.pool = ThreadPoolExecutor(self.config.codec_threads, thread_name_prefix="codec")
        run: Callable[[UNetCall], Any] = forward
        if graphed and measured.call is not None:
            run = GraphedForward()
            run.prepare(measured.call, limit.rows)
        elif self.config.openvino and measured.call is not None:
            run = OpenVINOForward(self.threads)
            run(measured.call)  # converts it, before anybody waits for it
        return StepBatcher(limit, self.memory, partial(self._timed_forward, run)), Decoder(self.memory, stream)

    def _timed_forward(self, run: Callable[[UNetCall], Any], call: UNetCall) -> Any:
        with self.stages.timed("unet"):
            return run(call)

    def _models(self) -> dict[str, list[str]]:
        """The tasks of each model to load; an inpainting model takes over masking."""
        models: dict[str, list[str]] = {}
        for task in self.tasks:
            inpaints = task == "masking" and self.config.inpainting_model
            models.setdefault(self.config.inpainting_model if inpaints else self.config.model, []).append(task)
        return models

    def handle(self, data: Sequence[dict[str, Any]], context: Any) -> list[bytes]:
        """Whole lines for each open request. Never raises: one bad request must not fail its neighbours."""
        request_ids = [context.get_request_id(i) for i in range(len(data))]
        for gone in self.generations.keys() - set(request_ids):
            self.engine.cancel(self.generations.pop(gone))
        new: set[str] = set()
        last_lines: dict[str, bytes] = {}
        for i, request_id in enumerate(request_ids):
            if request_id in self.generations:
                continue
            new.add(request_id)
            context.set_response_content_type(i, LINES_TYPE)
            try:
                head = RequestHead.read(partial(context.get_request_header, i))
                if head.task == DESCRIBE:
                    last_lines[request_id] = Result(json.dumps(self.describe()).encode()).line()
                else:
                    self.generations[request_id] = self._open(data[i], head)
                    self.engine.open(self.generations[request_id])
            except (RequestError, ValueError) as error:
                last_lines[request_id] = Failed(getattr(error, "status", 400), str(error)).line()
        has_news = bool(last_lines) or any(g.ending is not None for g in self.generations.values())
        self.engine.wait(has_news)
        last_lines |= self._take_ended()
        # None = a plain reply: TorchServe writes no HTTP head for a first answer that is also the last chunk
        verdicts = [(None if rid in new else True) if rid in last_lines else False for rid in request_ids]
        context.stopping_criteria = [partial(_verdict, verdict) for verdict in verdicts]
        # blank where there is nothing to say: TorchServe wants an answer in any case
        return [
            last_lines[rid] if rid in last_lines else self.generations[rid].progress() or b"\n" for rid in request_ids
        ]

    def describe(self) -> dict[str, Any]:
        """What this worker serves, for `GET /models`: an entry for each model, as a rule one."""
        tasks: dict[str, list[str]] = {}
        for task, served in self.served.items():
            tasks.setdefault(served.model, []).append(task)
        return {"models": [self._describe(names) for names in tasks.values()]}

    def _describe(self, tasks: list[str]) -> dict[str, Any]:
        limits = ("max_num_outputs", "max_num_inference_steps", "min_size", "max_size", "max_image_pixels",
                  "max_image_bytes", "max_prompt_chars")  # fmt: skip
        served = self.served[tasks[0]]
        return {
            "model": served.model,
            "tasks": tasks,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "safety_checker": getattr(served.pipeline, "safety_checker", None) is not None,
            "schedulers": served.schedulers,
            "defaults": asdict(served.defaults),
            "limits": {name: getattr(self.config, name) for name in limits},
            "activity": {
                "open_requests": len(self.generations),
                "max_batch_rows": self.engine.batcher.limit.rows,
                **asdict(self.engine.batcher.activity),
                "stage_seconds": {name: round(seconds, 4) for name, seconds in self.stages.seconds.items()},
            },
        }

    def _open(self, data: dict[str, Any], head: RequestHead) -> Generation:
        task = head.task or (self.tasks[0] if len(self.tasks) == 1 else "")
        if task not in self.tasks:
            raise InvalidRequest(f"This archive serves {', '.join(self.tasks)}: say which in the header X-Task.")
        served = self.served[task]

        def parse() -> GenerationRequest:
            fields = read_fields(data, head.form_type, self.config.max_fields)
            return parse_request(task, fields, self.config, served.defaults, served.schedulers)

        def admit(request: GenerationRequest) -> None:
            self.memory.admit(request, served.pipeline.vae_scale_factor)

        return Generation(
            parse, admit, self.pool, served.pipeline, self.stages, head.deadline,
            name=head.request_id, wants_progress=head.wants_progress,
            preview_map=served.preview_map,
        )  # fmt: skip

    def _take_ended(self) -> dict[str, bytes]:
        """The last lines of what has ended: all failures, and one result at most.

        TorchServe's decoder slows down quadratically on large replies, so further results wait for the next call.
        """
        over = [request_id for request_id, generation in self.generations.items() if generation.ending is not None]
        failed = [request_id for request_id in over if self.generations[request_id].error]
        succeeded = [request_id for request_id in over if request_id not in failed]
        ended = {request_id: self.generations.pop(request_id) for request_id in failed + succeeded[:1]}
        return {request_id: one.progress() + (one.ending or b"") for request_id, one in ended.items()}


def _verdict(verdict: bool | None, _: Any) -> bool | None:
    return verdict
