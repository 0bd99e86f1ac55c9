"""What one worker serves: its models, loaded; the requests that it opens; and its description for `GET /models`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from handlers.config import ENGINES, HandlerConfig
from handlers.engine.decoder import Decoder
from handlers.engine.finishing import Provenance
from handlers.engine.generation import Generation
from handlers.engine.large_images import LargeImages
from handlers.engine.parsing import IncomingRequest
from handlers.engine.shared import Shared
from handlers.engine.step_batcher import RowLimit, StepBatcher
from handlers.engine.timings import Timings
from handlers.engine.warm_up import Measured, warm_up
from handlers.errors import InvalidRequest, ModelError
from handlers.forward.calls import DenoiserCall
from handlers.forward.conversions import Converter, pays
from handlers.forward.cuda_graphs import GraphedForward
from handlers.forward.merging import forward
from handlers.forward.openvino import OpenVINOForward, convert_checker, convert_vae
from handlers.forward.side_stream import NoSideStream, SideStream
from handlers.forward.weights import Weights
from handlers.hardware.device import choose_channels_last, choose_device, choose_dtype
from handlers.hardware.memory import Memory
from handlers.installation import Installation
from handlers.pipelines import controlnets, embeddings, loras
from handlers.pipelines.controlnets import ControlNets
from handlers.pipelines.families import denoiser, denoiser_name, needs_range, rows_with_guidance
from handlers.pipelines.hub import fetch
from handlers.pipelines.loading import ServedPipeline, load_pipelines, prepare_pipelines
from handlers.pipelines.named_files import NamedFiles
from handlers.pipelines.plain_prompts import prompts_for
from handlers.pipelines.sources import resolve_model
from handlers.pipelines.upscalers import Upscalers, suffixes
from handlers.request.fields import read_fields
from handlers.request.reader import Reader
from handlers.request.samplers import names_for
from handlers.wire import TASK_HEADER, WITHOUT_MODEL, RequestHead

logger = logging.getLogger(__name__)

LIMITS = ("max_num_outputs", "max_num_inference_steps", "min_size", "max_size", "max_image_pixels",
          "max_image_bytes", "max_prompt_chars")  # fmt: skip


@dataclass(frozen=True)
class Worker:
    """Built once, in the engine's thread, by `load`.

    Attributes:
        engine: `torch` or `openvino`.
        dtype: by name, what the denoiser computes in.
        threads: that a worker computes with while no other one generates.
        served: the pipeline of each task.
        measured: what the warm-up needed.
    """

    tasks: Sequence[str]
    config: HandlerConfig
    device: torch.device
    engine: str
    dtype: str
    threads: int
    served: Mapping[str, ServedPipeline]
    measured: Measured
    shared: Shared
    batcher: StepBatcher
    decoder: Decoder

    @classmethod
    def load(cls, tasks: Sequence[str], settings: Mapping[str, Any], gpu_id: int | None, threads: int) -> "Worker":
        """Loads the models that the archive's settings name, and generates a first image with each pipeline.

        Raises ModelError.
        """
        # 1. the settings, and the device that they mean
        config = HandlerConfig.from_mapping(settings)
        device = choose_device(config.device, gpu_id)
        engine, installed = _engine(config, device), Installation.find(config.home)
        converter = Converter(threads, config.dtype, installed.conversions) if engine == "openvino" else None
        exact = config.engine == "torch"  # who asks for it gets the plain pipeline's images

        def dtype_in(half: torch.dtype) -> torch.dtype:
            return torch.float32 if converter else choose_dtype(config.dtype, device, exact, half)

        # 2. the models
        timings = Timings()
        served = _load_models(tasks, config, device, dtype_in, timings, installed)
        # 3. a first image with each pipeline, which tells what one needs, and has OpenVINO convert it
        run: Callable[[DenoiserCall], Any] = forward
        if converter:
            run = _in_openvino(served, converter)
        measured = warm_up(served, device, run)
        timings.reset()
        # 4. what runs a forward, within which limits
        limit = RowLimit(measured.seconds_per_row, device.type == "cpu", config.max_batch_rows)
        graphed = config.cuda_graphs and device.type == "cuda"
        # in low-memory mode, modules come and go in the order of their calls
        stream = SideStream(device) if graphed and not config.low_memory else NoSideStream()
        memory = Memory(
            device, measured.native_area, measured.row_bytes, measured.image_bytes, isinstance(stream, SideStream),
            guided_rows=max(rows_with_guidance(one.pipeline) for one in served.values()),
        )  # fmt: skip
        if graphed and measured.call is not None:
            run = graphs = GraphedForward()
            graphs.prepare(measured.call, limit.rows)
        provenance = Provenance(installed.writes_parameters, installed.writes_mark)
        pool = ThreadPoolExecutor(config.codec_threads, thread_name_prefix="codec")
        return cls(
            tasks, config, device, engine,
            _dtype_name(served, converter, run), threads, served, measured,
            shared=Shared(
                config, memory, pool, timings, provenance=provenance, large=LargeImages(config.max_open_pixels),
                upscalers=Upscalers(
                    NamedFiles(Path(config.upscalers_dir or installed.upscalers), suffixes(config.allow_pickle)),
                    device, config.max_image_pixels,
                ),
                controlnets=ControlNets(
                    NamedFiles(Path(config.controlnets_dir or installed.controlnets), controlnets.SUFFIXES)
                ),
            ),
            batcher=StepBatcher(limit, memory, partial(_timed, timings, run)),
            decoder=Decoder(memory, stream),
        )  # fmt: skip

    def open(self, data: Mapping[str, Any], head: RequestHead) -> Generation:
        """A request of TorchServe's. Raises InvalidRequest for a task that is not served here."""
        task = head.task or (self.tasks[0] if len(self.tasks) == 1 else "")
        if task not in (*self.tasks, *WITHOUT_MODEL):
            raise InvalidRequest(f"This archive serves {', '.join(self.tasks)}: say which in the header {TASK_HEADER}.")
        served = self.served.get(task) or next(iter(self.served.values()))
        return Generation(IncomingRequest(task, data, head), served, self.shared)

    def count(self, data: Mapping[str, Any], head: RequestHead) -> dict[str, Any]:
        """How many tokens a request's prompts have, chunk by chunk. Raises InvalidRequest."""
        read = Reader(read_fields(data, head.form_type, self.config.max_fields))
        prompt = read.text("prompt", None, self.config.max_prompt_chars)
        negative_prompt = read.text("negative_prompt", "", self.config.max_prompt_chars)
        served = next(iter(self.served.values()))
        prompts = prompts_for(served.pipeline, prompt, negative_prompt, served.embeddings)
        return {"status": "success", **served.counter.counts(prompts)}

    @property
    def seconds_per_image(self) -> float:
        """About how long an image of the first task takes alone, of native size and with the model's own steps."""
        steps = next(iter(self.served.values())).defaults.num_inference_steps
        rows = self.measured.call.rows if self.measured.call else 1
        return steps * rows * self.batcher.limit.seconds_per_row + self.measured.image_seconds

    def describe(self, open_requests: int) -> dict[str, Any]:
        """What this worker serves, for `GET /models`: an entry for each model, as a rule one."""
        tasks: dict[str, list[str]] = {}
        for task, served in self.served.items():
            tasks.setdefault(served.model, []).append(task)
        return {"models": [self._describe(names, open_requests) for names in tasks.values()]}

    def _describe(self, tasks: list[str], open_requests: int) -> dict[str, Any]:
        served = self.served[tasks[0]]
        seconds = self.shared.timings.seconds
        return {
            "model": served.model,
            "tasks": tasks,
            "device": str(self.device),
            "engine": self.engine,
            "dtype": self.dtype,
            "threads": self.threads,
            "seconds_per_image": float(f"{self.seconds_per_image:.2g}"),
            "safety_checker": getattr(served.pipeline, "safety_checker", None) is not None,
            "schedulers": [*served.schedulers],
            "samplers": names_for(served.schedulers),
            "loras": [*served.loras.files.all()],
            "embeddings": [*served.embeddings.files.all()],
            "controlnets": self.shared.controlnets.names(),
            "upscalers": self.shared.upscalers.usable(),
            "defaults": asdict(served.defaults),
            "limits": {name: getattr(self.config, name) for name in LIMITS},
            "activity": {
                "open_requests": open_requests,
                "max_batch_rows": self.batcher.limit.rows,
                **asdict(self.batcher.activity),
                "stage_seconds": {name: round(value, 4) for name, value in seconds.items()},
            },
        }


def _dtype_name(served: Mapping[str, ServedPipeline], converter: Converter | None, run: Any) -> str:
    """What `run` computes the denoiser of the first task in."""
    first = denoiser(next(iter(served.values())).pipeline)
    if converter and run.runs(first):
        return converter.dtype
    return str(first.dtype).removeprefix("torch.")


def _in_openvino(served: Mapping[str, ServedPipeline], converter: Converter) -> OpenVINOForward:
    """Has OpenVINO compute the models' denoisers, VAEs and safety checkers, whose weights then leave torch's memory."""
    denoisers = []
    for one in {id(denoiser(one.pipeline)): one for one in served.values()}.values():
        denoisers.append(Weights(denoiser(one.pipeline), partial(_part, one, denoiser_name(one.pipeline))))
        convert_vae(one.pipeline.vae, converter, partial(_part, one, "vae"))
        if checker := getattr(one.pipeline, "safety_checker", None):
            convert_checker(checker, converter, partial(_part, one, "safety_checker"))
    return OpenVINOForward(converter, denoisers)


def _part(served: ServedPipeline, name: str) -> Any:
    """A part of its pipeline, loaded once more: as a rule beside the model's text encoders, which are large."""
    return getattr(next(iter(served.load(without_encoders=True).values())), name)


def _engine(config: HandlerConfig, device: torch.device) -> str:
    """`torch` or `openvino`. Raises ModelError."""
    if config.engine not in ENGINES:
        raise ModelError(f"There is no engine {config.engine!r}: use {', '.join(ENGINES)}.")
    if config.engine == "openvino" and device.type != "cpu":
        raise ModelError("OpenVINO computes on a CPU: add --device cpu, or use --engine auto.")
    if config.engine == "auto":
        return "openvino" if device.type == "cpu" and config.dtype != "float16" and pays() else "torch"
    return config.engine


def _load_models(
    tasks: Sequence[str],
    config: HandlerConfig,
    device: torch.device,
    dtype_in: Callable[[torch.dtype], torch.dtype],
    timings: Timings,
    installed: Installation,
) -> dict[str, ServedPipeline]:
    """The pipeline of each task; a model for inpainting takes over masking.

    Args:
        dtype_in: what a model is computed in, by the 16 bits that it would take.
    """
    tasks_of: dict[str, list[str]] = {}
    for task in tasks:
        inpaints = task == "masking" and config.inpainting_model
        tasks_of.setdefault(config.inpainting_model if inpaints else config.model, []).append(task)
    served: dict[str, ServedPipeline] = {}
    # the files that were downloaded before, by a program that asks no CPU what it has
    half = dtype_in(torch.float16) != torch.float32 and (device.type != "cpu" or config.dtype != "auto")
    for model, own in tasks_of.items():
        source = resolve_model(model, installed)
        path = fetch(source, installed, half, config.allow_pickle)
        dtype = dtype_in(torch.bfloat16 if needs_range(path) else torch.float16)
        channels_last = choose_channels_last(config.channels_last, device, dtype)
        load = partial(load_pipelines, path, own, device, dtype, config, installed.configs, channels_last)
        pipelines = load()
        timings.watch(pipelines[own[0]])  # they share their modules
        prepared = prepare_pipelines(
            source, path, pipelines, load,
            NamedFiles(Path(config.lora_dir or installed.loras), loras.SUFFIXES), config.max_lora_bytes,
            NamedFiles(Path(config.embeddings_dir or installed.embeddings), embeddings.suffixes(config.allow_pickle)),
        )  # fmt: skip
        served |= {task: prepared[task] for task in own}
    return served


def _timed(timings: Timings, run: Callable[[DenoiserCall], Any], call: DenoiserCall) -> Any:
    with timings.timed("unet"):
        return run(call)
