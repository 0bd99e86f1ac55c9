"""A hub model's files: which of them a pipeline loads, and how they get into the local cache.

diffusers is imported only where it is needed, so that server.py can look at a model without it.
"""

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.families import DENOISERS
from handlers.pipelines.sources import ModelSource

PICKLED = (".ckpt", ".bin", ".pt", ".pth")
PICKLE_WARNING = (
    "its weights are pickled files, which can run any program when they are loaded: look for a model in the "
    "safetensors format, or use --allow-pickle if you trust its author."
)
# the weights of a component, with the name of their variant: unet/diffusion_pytorch_model.fp16.safetensors
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[a-z]\w*))?(?:-\d+-of-\d+)?\.safetensors")


def variant_of(file_names: Iterable[str], half: bool) -> str | None:
    """The variant of the weights to load: `fp16` for half precision if there is one, otherwise the full one.

    Args:
        file_names: the model's files, with their folders.
    """
    weights = [WEIGHTS.fullmatch(Path(name).name) for name in file_names if Path(name).parent.name in DENOISERS]
    variants = {match["variant"] for match in weights if match}
    if (half and "fp16" in variants) or variants == {"fp16"}:
        return "fp16"
    return None


def fetch(source: ModelSource, installed: Installation, half: bool = False, allow_pickle: bool = False) -> Path:
    """The local folder or file of a model; missing files of a hub model are downloaded into the cache.

    Only files that the pipelines load are downloaded. A broken download is resumed, and complete files are kept for the
    next try. Raises ModelError, which says what to do about a refused, missing, unreachable or pickled model, or a full
    disk.
    """
    if source.is_local:
        return Path(source.location)
    model, token = source.location, installed.token()
    with _sentences(model):
        files = _hub_files(model, token)
        if files is not None:
            check_files(model, files, allow_pickle)

        from diffusers import DiffusionPipeline
        from huggingface_hub import snapshot_download

        if files is None:
            cached = Path(snapshot_download(model, local_files_only=True, allow_patterns="model_index.json"))
            available = [file.relative_to(cached).as_posix() for file in cached.glob("*/*")]
        else:
            available = files
        return Path(
            DiffusionPipeline.download(
                model, token=token, variant=variant_of(available, half),
                use_safetensors=None if allow_pickle else True, local_files_only=files is None,
            )
        )  # fmt: skip


def fetch_vae(name: str, installed: Installation, allow_pickle: bool = False) -> Path:
    """The local folder or file of a VAE by itself; one of the hub is downloaded. Raises ModelError as `fetch`."""
    if Path(name).exists():
        return Path(name)
    with _sentences(name):
        from huggingface_hub import snapshot_download

        endings = (".safetensors", *PICKLED) if allow_pickle else (".safetensors",)
        wanted = ["config.json", *(f"diffusion_pytorch_model{ending}" for ending in endings)]
        return Path(snapshot_download(name, token=installed.token(), allow_patterns=wanted))


def _hub_files(model: str, token: str | None) -> list[str] | None:
    """The names of a hub model's files; None if the hub cannot be reached, or must not be."""
    import httpx2  # huggingface_hub's HTTP client
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return [file.rfilename for file in HfApi().model_info(model, token=token, timeout=20).siblings or []]
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None  # the hub has a fault: the cache may have the files
        raise


@contextlib.contextmanager
def _sentences(model: str) -> Iterator[None]:
    """Turns errors of the hub and its libraries into ModelErrors that say what to do."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        yield
    except ModelError:
        raise
    except GatedRepoError:
        text = (
            f"{model} is gated: accept its licence on the hub's page, then put your token into token.txt or HF_TOKEN."
        )
    except RepositoryNotFoundError:
        text = f"The hub has no model {model}, or your token gives no access to it: check the id and the token."
    except HFValidationError:
        text = f"{model} is neither a folder on this machine nor a hub id of the form name/model."
    except httpx2.TransportError as error:
        text = f"The download of {model} was interrupted ({error}): start again, complete files are kept."
    except FileNotFoundError:
        text = (
            f"{model} is not in the local cache, or only in part, and the hub cannot be reached: connect to the "
            "internet, or give the path of a model folder instead (--model, or model_path in config.json)."
        )
    except Exception as error:  # an unusual model fails in as many ways as there are loaders
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = (
                f"The disk is full, {model} does not fit: make room, or set HF_HOME to a folder on a larger disk. "
                "Complete files are kept."
            )
        else:
            text = f"{model} cannot be downloaded: {error}"
    else:
        return
    raise ModelError(text)


def check_files(model: str, file_names: Iterable[str], allow_pickle: bool) -> None:
    """Raises ModelError for a model that is not in the diffusers format, or has only pickled weights."""
    names = list(file_names)
    if "model_index.json" not in names:
        single = next((name for name in names if name.endswith(".safetensors")), None)
        hint = f": download its {single} and give --model the file's path" if single else ""
        raise ModelError(f"{model} is not a diffusion model in the diffusers format{hint}.")
    for component in (*DENOISERS, "vae"):
        own = [Path(name) for name in names if name.startswith(f"{component}/")]
        safe = any(name.suffix == ".safetensors" for name in own)
        if not allow_pickle and not safe and any(name.suffix in PICKLED for name in own):
            raise ModelError(f"{model} is not loaded: {PICKLE_WARNING}")
