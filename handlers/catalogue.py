"""The models that could be served, as a file that the builder of archives writes, the proxy reads, and workers add to.

    <model store>/.catalogue/models.json          {"memory_bytes": …, "models": [{"name": "dream", …}]}
    <model store>/.catalogue/custom-dream.failed  why a worker could not load that archive

Needs only the standard library.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from handlers.wire import CUSTOM

FOLDER = ".catalogue"  # in the model store; TorchServe skips hidden names
READY, PREPARING, FAILED = "ready", "preparing", "failed"
_FILE = "models.json"


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that could be served beside the main one.

    Attributes:
        name: by which requests name it, as in `/custom/<name>`.
        label: its name for people, which requests may use too: a file's or folder's name, or a hub id.
        state: READY to be loaded, PREPARING, or FAILED.
        reason: a sentence, if it is FAILED.
        weight_bytes: of its weights in memory; 0 if that is not known.
    """

    name: str
    label: str
    state: str = READY
    reason: str = ""
    weight_bytes: int = 0

    @property
    def archive(self) -> str:
        return CUSTOM + self.name


@dataclass(frozen=True)
class Contents:
    """What the file says.

    Attributes:
        memory_bytes: what all models together have of the device; 0 if that is not known.
        beside_bytes: what a model takes beside its weights.
        main_weight_bytes: of the weights of each archive of the main model.
        models: beside the main one.
    """

    memory_bytes: int = 0
    beside_bytes: int = 0
    main_weight_bytes: int = 0
    models: tuple[CatalogueEntry, ...] = ()


class Catalogue:
    """The files in one folder, which need not exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / _FILE
        self._read: tuple[int, Contents] = (0, Contents())  # when the file was written, and what it says

    def contents(self) -> Contents:
        """Reads the file again if it was written since. One that cannot be read counts as empty."""
        try:
            written = self._file.stat().st_mtime_ns
            if written != self._read[0]:
                told = json.loads(self._file.read_text(encoding="utf-8"))
                models = tuple(CatalogueEntry(**model) for model in told.pop("models"))
                self._read = written, Contents(**told, models=models)
        except FileNotFoundError:
            self._read = (0, Contents())
        except (OSError, ValueError, TypeError, LookupError, AttributeError):  # another version's
            pass
        return self._read[1]

    @property
    def is_there(self) -> bool:
        """Whether anybody writes it."""
        return self._file.is_file()

    def find(self, archive: str) -> CatalogueEntry | None:
        return next((model for model in self.contents().models if model.archive == archive), None)

    def write(self, contents: Contents) -> None:
        _replace(self._file, json.dumps(asdict(contents), indent=1))

    def tell_failure(self, archive: str, sentence: str) -> None:
        """Leaves the reason why an archive could not be loaded."""
        _replace(self._failure(archive), sentence)

    def forget_failure(self, archive: str) -> None:
        self._failure(archive).unlink(missing_ok=True)

    def failure(self, archive: str) -> str:
        """Why an archive could not be loaded; empty if no worker has said so."""
        try:
            return self._failure(archive).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _failure(self, archive: str) -> Path:
        return self._folder / f"{archive}.failed"


def _replace(file: Path, text: str) -> None:
    """Writes a file that is never seen half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
