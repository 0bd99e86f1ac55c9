"""Which model is served: a hub id, a diffusers folder or a single file; and its LoRA files. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from handlers.errors import ModelError
from handlers.installation import Installation

HUB_DEFAULT = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SINGLE_FILE = (".safetensors", ".ckpt")


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


def resolve_model(wanted: str, installed: Installation) -> ModelSource:
    """`wanted` (an id, a path or `default`) > SD_MODEL > a token, meaning Stable Diffusion 1.5 > the embedded model.

    Raises ModelError if a path names no model.
    """
    if wanted != "default":
        source = ModelSource(wanted, "as asked for")
    elif installed.model:
        source = ModelSource(installed.model, "as SD_MODEL says")
    elif installed.token():
        source = ModelSource(HUB_DEFAULT, "because there is a Hugging Face token")
    else:
        source = ModelSource(str(installed.embedded_model), "the embedded model, which needs no download")
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
