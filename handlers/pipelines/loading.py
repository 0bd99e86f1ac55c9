"""Loads a model: the stock diffusers pipeline of each task, all on one set of weights."""

import importlib
import json
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from handlers.config import HandlerConfig
from handlers.errors import ModelError
from handlers.pipelines.defaults import model_defaults
from handlers.pipelines.embeddings import Embeddings
from handlers.pipelines.families import denoiser, denoiser_name
from handlers.pipelines.float8 import store_in_float8
from handlers.pipelines.hub import PICKLE_WARNING, check_files, variant_of
from handlers.pipelines.loras import Loras
from handlers.pipelines.low_memory import offload
from handlers.pipelines.named_files import NO_FILES, NamedFiles
from handlers.pipelines.noise import use_variations
from handlers.pipelines.parts import load_transformer, load_vae
from handlers.pipelines.previews import PreviewMap, fit_preview
from handlers.pipelines.prompt_cache import remember_prompts
from handlers.pipelines.schedulers import options, schedulers
from handlers.pipelines.sources import ModelSource, loras
from handlers.pipelines.token_counter import TokenCounter
from handlers.request.fields import ModelDefaults

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedPipeline:
    """A task's pipeline and its model's own settings.

    Attributes:
        model: the name that clients see.
        schedulers: those that fit it, by diffusers' class names, each with the options that it takes.
        load: loads the model's pipelines once more, as load_pipelines does.
        img2img: the pipeline of a txt2img image's second pass.
        loras, embeddings: that prompts may name.
        counter: of a prompt's tokens.
    """

    model: str
    pipeline: Any
    defaults: ModelDefaults
    schedulers: Mapping[str, Collection[str]]
    load: Callable[..., Mapping[str, Any]]
    preview_map: PreviewMap | None = None
    loras: Loras = field(default_factory=lambda: Loras(None, NO_FILES, 0))
    embeddings: Embeddings = field(default_factory=lambda: Embeddings(None, NO_FILES))
    img2img: Any = None
    counter: TokenCounter = field(default_factory=lambda: TokenCounter(None))

    @property
    def enlarges_latents(self) -> bool:
        """Whether a second pass may start from the first one's latents."""
        return denoiser_name(self.pipeline) == "unet"

    @property
    def native_area(self) -> int:
        """Latent pixels of an image of native size."""
        return self.defaults.width * self.defaults.height // int(self.pipeline.vae_scale_factor) ** 2


def prepare_pipelines(
    source: ModelSource,
    path: Path,
    pipelines: Mapping[str, Any],
    load: Callable[..., Mapping[str, Any]],
    lora_files: NamedFiles = NO_FILES,
    max_lora_bytes: int = 0,
    embedding_files: NamedFiles = NO_FILES,
) -> dict[str, ServedPipeline]:
    """The pipelines of one model by their tasks, made ready to serve. Raises ModelError for faulty defaults."""
    remember_prompts(list(pipelines.values()))
    for pipeline in pipelines.values():
        use_variations(pipeline)
    first = next(iter(pipelines.values()))
    defaults = model_defaults(path, first)
    kinds = {name: options(kind) for name, kind in schedulers(first).items()}
    try:
        preview_map = fit_preview(first)
    except Exception:  # a model without previews is served all the same
        logger.exception("No previews with this model.")
        preview_map = None
    counter = TokenCounter.of(first)
    own_loras, own_embeddings = Loras(first, lora_files, max_lora_bytes), Embeddings(first, embedding_files)
    return {
        task: ServedPipeline(
            model=source.name,
            pipeline=pipeline,
            defaults=defaults,
            schedulers=kinds,
            load=load,
            preview_map=preview_map,
            loras=own_loras,
            embeddings=own_embeddings,
            img2img=pipelines.get("img2img"),
            counter=counter,
        )
        for task, pipeline in pipelines.items()
    }


def load_pipelines(
    path: Path,
    tasks: Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
    config: HandlerConfig,
    configs: Path,
    channels_last: bool = False,
    without_encoders: bool = False,
) -> dict[str, Any]:
    """The pipeline of each task, all on one set of weights; with txt2img also img2img, which second passes need.

    Args:
        path: a diffusers folder, or a single file.
        configs: the folder with the configurations for single files.
        channels_last: whether the denoiser and the VAE have that layout.
        without_encoders: leaves a folder's text encoders out, for its other parts alone.

    Raises ModelError.
    """
    _quiet_libraries()
    try:
        # 1. the text-to-image pipeline, from a folder or a single file
        if path.is_file():
            first = _load_file(path, dtype, config, configs)
        else:
            first = _load_folder(path, dtype, config, without_encoders and not config.lora)
        _check_family(first, tasks, path.name)
        if config.vae:
            first.register_modules(vae=load_vae(config, first.vae, dtype))
        # 2. LoRAs, merged into its weights
        for file, scale in loras(config.lora):
            _add_lora(first, file, scale)
        if config.float8_text_encoders:
            store_in_float8(first, device)
        # 3. onto the device
        if config.low_memory and device.type != "cpu":
            offload(first, device)
        else:
            first.to(device)
        # 4. the other tasks' pipelines, on the same modules
        needed = dict.fromkeys([*tasks, "img2img"] if "txt2img" in tasks else tasks)
        pipelines = {task: _of_task(task, first, dtype) for task in needed}
        if dtype != torch.float32 and hasattr(first, "upcast_vae") and first.vae.config.force_upcast:
            # SDXL's overflows in half precision: its pipelines convert it to float32 and back while other jobs wait
            first.vae.to(torch.float32)
        if channels_last:
            for module in (denoiser(first), first.vae):
                module.to(memory_format=torch.channels_last)
    except ModelError:
        raise
    except Exception as error:  # a damaged or unusual model fails in as many ways as there are loaders
        raise ModelError(f"The model {path} cannot be loaded: {error}") from error
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    if getattr(first, "safety_checker", None) is None:
        logger.warning("The model %s has no safety checker: every answer says nsfw=false.", path.name)
    return pipelines


def _load_folder(path: Path, dtype: torch.dtype, config: HandlerConfig, without_encoders: bool) -> Any:
    from diffusers import AutoPipelineForText2Image

    files = [file.relative_to(path).as_posix() for file in path.glob("**/*")]
    check_files(str(path), files, config.allow_pickle)
    parts: dict[str, Any] = {}
    index = json.loads((path / "model_index.json").read_text(encoding="utf-8"))
    if not config.safety_checker and "safety_checker" in index:
        parts = {"safety_checker": None, "requires_safety_checker": False}
    parts |= _left_out(index, without_encoders)
    if config.transformer:
        if "transformer" not in index:
            raise ModelError(f"{path.name} has no transformer that --transformer could replace: leave the option out.")
        parts["transformer"] = load_transformer(Path(config.transformer), path, index["transformer"][1], dtype)
    return AutoPipelineForText2Image.from_pretrained(
        path, dtype=dtype, variant=variant_of(files, dtype != torch.float32),
        use_safetensors=None if config.allow_pickle else True, **parts,
    )  # fmt: skip


def _left_out(index: Mapping[str, Any], without_encoders: bool = False) -> dict[str, None]:
    """The parts that a pipeline does without, as Stable Diffusion 3's without T5."""
    encoders = {name: kind for name, kind in index.items() if name.startswith(("text_encoder", "tokenizer"))}
    return {name: None for name, kind in encoders.items() if without_encoders or kind == [None, None]}


def _load_file(path: Path, dtype: torch.dtype, config: HandlerConfig, configs: Path) -> Any:
    """A checkpoint in the layout of the original code. It has no safety checker, and what it has of T5 is not used."""
    import diffusers
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type, load_single_file_checkpoint
    from transformers import CLIPTokenizer

    if path.suffix != ".safetensors" and not config.allow_pickle:
        raise ModelError(f"{path} is not loaded: {PICKLE_WARNING}")
    if config.transformer:
        raise ModelError("--transformer replaces a part of a folder's or hub id's model: give one of them as --model.")
    checkpoint = load_single_file_checkpoint(str(path))
    kind = infer_diffusers_model_type(checkpoint)
    folder = configs / kind
    is_alone = (folder / "transformer").is_dir() and not any(name.startswith("text_encoders.") for name in checkpoint)
    if is_alone or not folder.is_dir():
        known = ", ".join(sorted(entry.name for entry in configs.iterdir() if (entry / "model_index.json").is_file()))
        raise ModelError(
            f"{path} is a checkpoint of the kind {kind}; these kinds can be served: {known}. If it is a transformer "
            "alone, give it as --transformer, and the model's folder or hub id as --model."
        )
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {"tokenizer": CLIPTokenizer.from_pretrained(configs / "tokenizer")}
    if "tokenizer_2" in index:  # SDXL's second tokenizer differs only in its padding token
        parts["tokenizer_2"] = CLIPTokenizer.from_pretrained(configs / "tokenizer", pad_token="!")
    if "safety_checker" in index:
        parts |= {"safety_checker": None, "requires_safety_checker": False}
    parts |= _left_out(index)
    return getattr(diffusers, index["_class_name"]).from_single_file(
        str(path), config=str(folder), dtype=dtype, local_files_only=True, **parts
    )


def _check_family(pipeline: Any, tasks: Sequence[str], name: str) -> None:
    """Raises ModelError for a model without a denoiser that is known, or with the wrong one for its tasks."""
    if not denoiser_name(pipeline) or getattr(pipeline, "vae", None) is None:
        raise ModelError(
            f"{name} is a {type(pipeline).__name__}, which has no UNet or transformer with a VAE: it cannot be served."
        )
    unet = getattr(pipeline, "unet", None)
    if unet and unet.config.in_channels > pipeline.vae.config.latent_channels and set(tasks) != {"masking"}:
        raise ModelError(
            f"{name} is an inpainting model, which can serve masking alone: give it as --inpainting-model, and another "
            "--model for the other tasks."
        )


def _of_task(task: str, pipeline: Any, dtype: torch.dtype) -> Any:
    import diffusers

    kind = {"txt2img": "Text2Image", "img2img": "Image2Image", "masking": "Inpainting"}[task]
    try:
        return getattr(diffusers, f"AutoPipelineFor{kind}").from_pipe(pipeline, dtype=dtype)
    except ValueError:
        if denoiser_name(pipeline) != "unet":
            raise ModelError(f"diffusers has no pipeline for {task} with a {type(pipeline).__name__}.") from None
        # a family without its own pipeline for the task, such as LCM for inpainting: its parts fit the stock one
        stock = {"txt2img": "", "img2img": "Img2Img", "masking": "Inpaint"}[task]
        return getattr(diffusers, f"StableDiffusion{stock}Pipeline").from_pipe(pipeline, dtype=dtype)


def _add_lora(pipeline: Any, file: Path, scale: float) -> None:
    """Merges a LoRA into the weights, so it takes no time while generating."""
    if getattr(denoiser(pipeline), "hf_quantizer", None) is not None:
        raise ModelError(f"--lora cannot merge {file.name} into a quantised model: name it in prompts instead.")
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora(lora_scale=scale)
    except Exception as error:  # made for another model, or no LoRA at all
        raise ModelError(f"The LoRA {file.name} is damaged, or was made for another model: {error}") from error
    pipeline.unload_lora_weights()


def _quiet_libraries() -> None:
    """Keeps progress bars and advice for programmers out of a server's log; errors still go there.

    It also keeps prompts out: diffusers quotes the end of a prompt that is too long.
    """
    for library in ("transformers", "diffusers"):
        variable = f"{library.upper()}_VERBOSITY"
        if variable not in os.environ:
            os.environ[variable] = "error"  # for messages during the import
            importlib.import_module(f"{library}.utils.logging").set_verbosity_error()  # if it was imported before
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
