"""Which model is served, where its weights come from, and the pipelines made of them.

torch and diffusers are imported where they are needed, so that server.py can find and download a model without them.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers.errors import ModelError
from handlers.request import ModelDefaults

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

HUB_DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEFAULTS_FILE = "generation_config.json"  # beside model_index.json; the name that transformers gave such a file

# only what the three pipelines load: safetensors and the small text files
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
HUB_IGNORED = ["*.fp16.safetensors", "*.non_ema.safetensors", "*/*onnx*", "*/flax*", "v1-5-pruned*"]


@dataclass(frozen=True)
class ModelSource:
    """A resolved model: `location` is a folder's path or a hub id; `reason` says why it was chosen."""

    location: str
    reason: str

    @property
    def is_local(self) -> bool:
        return Path(self.location).is_dir()

    @property
    def name(self) -> str:
        """What clients are told: a folder's name without the path to it."""
        return Path(self.location).name if self.is_local else self.location


def read_token(home: Path, environment: Mapping[str, str]) -> str | None:
    """The hub token: HF_TOKEN, else `token.txt` in the project's folder as in the original's instructions."""
    token = environment.get("HF_TOKEN", "").strip()
    file = home / "token.txt"
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8").strip()
    return token or None


def resolve_model(wanted: str, home: Path, environment: Mapping[str, str]) -> ModelSource:
    """`wanted` (an id, a path or `default`) > SD_MODEL > a token, meaning Stable Diffusion 1.5 > the embedded model.

    Raises ModelError if a path names no diffusers folder.
    """
    if wanted != "default":
        source = ModelSource(wanted, "as asked for")
    elif environment.get("SD_MODEL"):
        source = ModelSource(environment["SD_MODEL"], "as SD_MODEL says")
    elif read_token(home, environment):
        source = ModelSource(HUB_DEFAULT, "because there is a Hugging Face token")
    else:
        source = ModelSource(str(home / "models" / "embedded"), "the embedded model, which needs no download")
    path = Path(source.location)
    if not path.is_dir():
        if path.is_absolute() or source.location.startswith(("./", "../", "~")):
            raise ModelError(f"There is no model folder at {source.location}: give a diffusers folder or a hub id.")
    elif not (path / "model_index.json").is_file():
        raise ModelError(f"{source.location} has no model_index.json: it is not a diffusers model folder.")
    else:
        source = ModelSource(str(path.resolve()), source.reason)
    return source


def download(source: ModelSource, home: Path, environment: Mapping[str, str]) -> None:
    """Brings a hub model's files into the local cache, with huggingface_hub's progress bar.

    Raises ModelError with what to do about a refused, missing or unreachable model.
    """
    if source.is_local:
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    model = source.location
    try:
        snapshot_download(
            model, token=read_token(home, environment), allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
    except GatedRepoError:
        raise ModelError(
            f"{model} is gated: accept its licence on the hub's page, then put your token into token.txt or HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"The hub knows no model {model}, or your token may not see it: check the id and token."
        ) from None
    except HFValidationError:
        raise ModelError(f"{model} is neither a folder here nor a hub id of the form name/model.") from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{model} is not in the local cache and the hub cannot be reached: connect to the internet, "
            "or give --model the path of a model folder."
        ) from None
    except HfHubHTTPError as error:
        raise ModelError(f"The hub refused to send {model}: {error}") from None
    except OSError as error:
        raise ModelError(f"{model} could not be downloaded: {error}") from None


def load_pipelines(
    source: ModelSource, tasks: Sequence[str], device: "torch.device", dtype: "torch.dtype", token: str | None
) -> dict[str, Any]:
    """The stock diffusers pipeline of each task, all on one set of weights. Raises ModelError."""
    _quiet_libraries()
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

    classes = {
        "txt2img": AutoPipelineForText2Image,
        "img2img": AutoPipelineForImage2Image,
        "masking": AutoPipelineForInpainting,
    }
    pipelines: dict[str, Any] = {}
    try:
        for task in tasks:
            if pipelines:
                pipeline = classes[task].from_pipe(next(iter(pipelines.values())), dtype=dtype)
            else:
                pipeline = (
                    classes[task]
                    .from_pretrained(source.location, dtype=dtype, token=token, use_safetensors=True)
                    .to(device)
                )
            pipeline.set_progress_bar_config(disable=True)
            pipelines[task] = pipeline
    except Exception as error:  # a damaged or strange model fails in as many ways as there are loaders
        raise ModelError(f"The model {source.location} cannot be loaded: {error}") from error
    if getattr(pipeline, "safety_checker", None) is None:
        logger.warning("The model %s has no safety checker: every answer says nsfw=false.", source.location)
    return pipelines


def _quiet_libraries() -> None:
    """Keeps progress bars and advice for programmers out of a server's log; errors still get there."""
    for variable in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")  # read when the library is imported
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def model_defaults(source: ModelSource, pipeline: Any) -> ModelDefaults:
    """The model's own steps and guidance (from generation_config.json, else the contract's), native and drawn size."""
    contract = ModelDefaults()
    own: dict[str, Any] = {}
    file = Path(source.location) / DEFAULTS_FILE
    if file.is_file():
        own = json.loads(file.read_text(encoding="utf-8"))
    sample_size = pipeline.unet.config.sample_size
    drawn_size = own.get("drawn_size")
    latent_height, latent_width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return ModelDefaults(
        num_inference_steps=int(own.get("num_inference_steps", contract.num_inference_steps)),
        guidance_scale=float(own.get("guidance_scale", contract.guidance_scale)),
        width=latent_width * pipeline.vae_scale_factor,
        height=latent_height * pipeline.vae_scale_factor,
        drawn_size=int(drawn_size) if drawn_size else None,
    )


def project_home(recorded: str, environment: Mapping[str, str]) -> Path:
    """The folder that holds `models/embedded` and `token.txt`: SD_HOME, else as recorded in the archive."""
    return Path(environment.get("SD_HOME") or recorded)
