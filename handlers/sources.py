"""Which model is served, and where its files are: a hub model's cache, a diffusers folder, or a single file.

`python -m handlers.sources MODEL` downloads a hub model with progress bars. torch and diffusers are imported where they
are needed, so that server.py can find a model without them.
"""

import argparse
import contextlib
import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from handlers.custom_models import config_file, hub_token, user_folder
from handlers.errors import ModelError

HUB_DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SINGLE_FILE = (".safetensors", ".ckpt")
PICKLED = (".ckpt", ".bin", ".pt", ".pth")
PICKLE_WARNING = (
    "its weights are pickled files, which can run any program when they are loaded: look for a model in the "
    "safetensors format, or say --allow-pickle if you trust whoever made it."
)
# the weights of a component, with the name of their variant: unet/diffusion_pytorch_model.fp16.safetensors
WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>[a-z]\w*))?(?:-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class ModelSource:
    """A resolved model: `location` is a hub id, or the path of a folder or a file; `reason` says why it was chosen."""

    location: str
    reason: str

    @property
    def is_local(self) -> bool:
        return Path(self.location).exists()

    @property
    def is_file(self) -> bool:
        return Path(self.location).is_file()

    @property
    def name(self) -> str:
        """What clients are told: a file's or folder's name without the path to it."""
        return Path(self.location).name if self.is_local else self.location


def project_home(recorded: str, environment: Mapping[str, str]) -> Path:
    """The folder that holds `models` and `token.txt`: SD_HOME, else as recorded in the archive."""
    return Path(environment.get("SD_HOME") or recorded)


def read_token(home: Path, environment: Mapping[str, str]) -> str | None:
    """The hub token: HF_TOKEN, else `token.txt` in the user's folder, else `hf_token` in config.json.

    Raises ModelError for a token.txt that is no text.
    """
    token = environment.get("HF_TOKEN", "").strip()
    file = user_folder(home) / "token.txt"
    if not token and file.is_file():
        try:
            token = file.read_text(encoding="utf-8-sig").strip()
        except ValueError:
            raise ModelError(f"{file} is not a plain text file: save the token again, as UTF-8.") from None
    return token or hub_token(config_file(home, environment))


def resolve_model(wanted: str, home: Path, environment: Mapping[str, str]) -> ModelSource:
    """`wanted` (an id, a path or `default`) > SD_MODEL > a token, meaning Stable Diffusion 1.5 > the embedded model.

    Raises ModelError if a path names no model.
    """
    if wanted != "default":
        source = ModelSource(wanted, "as asked for")
    elif environment.get("SD_MODEL"):
        source = ModelSource(environment["SD_MODEL"], "as SD_MODEL says")
    elif read_token(home, environment):
        source = ModelSource(HUB_DEFAULT, "because there is a Hugging Face token")
    else:
        source = ModelSource(str(home / "models" / "embedded"), "the embedded model, which needs no download")
    try:
        path = Path(source.location).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError) as error:  # a folder that may not be read, a home that is not known
        raise ModelError(f"{source.location} cannot be looked at: {error}") from None
    if is_folder:
        if not (path / "model_index.json").is_file():
            raise ModelError(f"{path} has no model_index.json: it is not a diffusers model folder.")
    elif is_file:
        if path.suffix not in SINGLE_FILE:
            raise ModelError(f"{path} is not a model: give a .safetensors file, a diffusers folder or a hub id.")
    else:
        if path.is_absolute() or source.location.startswith(("./", "../", "~")) or path.suffix in SINGLE_FILE:
            raise ModelError(
                f"There is no model at {source.location}: give a diffusers folder, a .safetensors file or a hub id."
            )
        return source
    return ModelSource(str(path.resolve()), source.reason)


def loras(setting: str) -> list[tuple[Path, float]]:
    """The files and scales of LoRAs, one a line: `/a.safetensors` or `/a.safetensors=0.8`. Raises ModelError."""
    found = []
    for entry in filter(None, (line.strip() for line in setting.splitlines())):
        name, _, scale = (entry, "", "1") if entry.endswith(".safetensors") else entry.rpartition("=")
        file = Path(name).expanduser()
        if not file.is_file() or file.suffix != ".safetensors":
            raise ModelError(f"There is no LoRA file at {name}: give the path of a .safetensors file, or FILE=SCALE.")
        try:
            found.append((file.resolve(), float(scale)))
        except ValueError:
            raise ModelError(f"The scale of a LoRA must be a number, not {scale!r}: give FILE=0.8, say.") from None
    return found


def variant_of(file_names: Iterable[str], half: bool) -> str | None:
    """Which variant of the weights to load: `fp16` where half precision is served, else the full one, if there is one.

    Args:
        file_names: of the model's files, with their folders.
    """
    weights = [WEIGHTS.fullmatch(Path(name).name) for name in file_names if Path(name).parent.name == "unet"]
    variants = {match["variant"] for match in weights if match}
    if (half and "fp16" in variants) or variants == {"fp16"}:
        return "fp16"
    return None


def fetch(
    source: ModelSource, home: Path, environment: Mapping[str, str], half: bool = False, allow_pickle: bool = False
) -> Path:
    """The local folder or file of a model; a hub model's files are downloaded into the cache where they are missing.

    Only what the pipelines load is downloaded. A connection that breaks is taken up again, and files that are complete
    stay for the next try. Raises ModelError with what to do about a refused, missing, unreachable or pickled model, or
    a full disk.
    """
    if source.is_local:
        return Path(source.location)
    model, token = source.location, read_token(home, environment)
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


def download(source: ModelSource, home: Path, half: bool = False, allow_pickle: bool = False) -> Path:
    """`fetch` in a process of its own, which shows its progress: this one stays without torch. Raises ModelError."""
    if source.is_local:
        return Path(source.location)
    command = [sys.executable, "-m", "handlers.sources", source.location]
    command += ["--half"] * half + ["--allow-pickle"] * allow_pickle
    environment = {**os.environ, "SD_HOME": str(home)}
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ModelError(done.stdout.strip() or f"{source.location} could not be downloaded.")
    return Path(done.stdout.strip().splitlines()[-1])


def _hub_files(model: str, token: str | None) -> list[str] | None:
    """The names of a hub model's files; None if the hub cannot be reached or is not to be."""
    import httpx2  # huggingface_hub's HTTP client
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return [file.rfilename for file in HfApi().model_info(model, token=token, timeout=20).siblings or []]
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            return None  # a hub in trouble: what is in the cache will do
        raise


@contextlib.contextmanager
def _sentences(model: str) -> Iterator[None]:
    """Turns what the hub and the libraries raise into ModelErrors that say what to do."""
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
        text = f"The hub knows no model {model}, or your token may not see it: check the id and token."
    except HFValidationError:
        text = f"{model} is neither a folder here nor a hub id of the form name/model."
    except httpx2.TransportError as error:
        text = f"The download of {model} broke off ({error}): start again, files that are complete stay."
    except FileNotFoundError:
        text = (
            f"{model} is not in the local cache, or only in part, and the hub cannot be reached: connect to the "
            "internet, or give --model the path of a model folder."
        )
    except Exception as error:  # a strange model fails in as many ways as there are loaders
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = (
                f"The disk is full, {model} does not fit: make room, or set HF_HOME to a folder on a larger disk. "
                "What is complete already stays."
            )
        else:
            text = f"{model} cannot be downloaded: {error}"
    else:
        return
    raise ModelError(text)


def check_files(model: str, file_names: Iterable[str], allow_pickle: bool) -> None:
    """Raises ModelError for a model that is not in the diffusers format, or has pickled weights alone."""
    names = list(file_names)
    if "model_index.json" not in names:
        single = next((name for name in names if name.endswith(".safetensors")), None)
        hint = f": download its {single} and give --model the file's path" if single else ""
        raise ModelError(f"{model} is not a diffusion model in the diffusers format{hint}.")
    for component in ("unet", "vae"):
        own = [Path(name) for name in names if name.startswith(f"{component}/")]
        safe = any(name.suffix == ".safetensors" for name in own)
        if not allow_pickle and not safe and any(name.suffix in PICKLED for name in own):
            raise ModelError(f"{model} is not loaded: {PICKLE_WARNING}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m handlers.sources", description="Downloads a model of the hub.")
    parser.add_argument("model", help="a hub id")
    parser.add_argument("--half", action="store_true", help="its half-precision weights, where it has them")
    parser.add_argument("--allow-pickle", action="store_true", help="also weights that can run programs")
    options = parser.parse_args(argv)
    home = project_home(str(Path(__file__).parent.parent), os.environ)
    try:
        print(fetch(ModelSource(options.model, ""), home, os.environ, options.half, options.allow_pickle))
    except KeyboardInterrupt:
        return 130
    except ModelError as error:
        print(error)  # on the standard output: the other one has the progress bars
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
