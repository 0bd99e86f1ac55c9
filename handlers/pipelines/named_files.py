"""A folder of files that requests use by name: LoRAs, embeddings, ControlNets, upscalers. Imports no torch."""

import contextlib
import difflib
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARED_STEMS = ("diffusion_pytorch_model", "pytorch_lora_weights")


@dataclass(frozen=True)
class NamedFile:
    """A file as it was when its folder was looked at: one that has changed since is another."""

    name: str
    path: Path
    changed_ns: int
    bytes: int


@dataclass(frozen=True)
class NamedFiles:
    """The files of a folder and of the folders in it, by their stems. It is looked at each time, so it may change.

    Files of repositories in diffusers' layout, which all have the same name, are known by their folders'.

    Args:
        folder: which need not exist; None for no files.
        suffixes: of the files that count, with their dots.
    """

    folder: Path | None = None
    suffixes: Sequence[str] = ()

    def all(self) -> dict[str, NamedFile]:
        """Every file, in the order of the names. Of two with the same stem, the one with the first path."""
        found: dict[str, NamedFile] = {}
        if self.folder is None:
            return found
        for path in sorted(self.folder.rglob("*"), key=lambda path: (_name(path).lower(), path)):
            if path.suffix.lower() in self.suffixes and _name(path) not in found:
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    state = path.stat()
                    if stat.S_ISREG(state.st_mode):
                        found[_name(path)] = NamedFile(_name(path), path, state.st_mtime_ns, state.st_size)
        return found


def _name(path: Path) -> str:
    return path.parent.name if path.stem in SHARED_STEMS else path.stem


NO_FILES = NamedFiles()


def named(files: dict[str, NamedFile], name: str) -> NamedFile | None:
    """The file of a name, whose case matters only where two names differ in nothing else."""
    if name in files:
        return files[name]
    return next((file for stem, file in files.items() if stem.lower() == name.lower()), None)


def nearest(files: dict[str, NamedFile], name: str) -> str:
    """The names that resemble `name`, as the end of a sentence."""
    stems = {stem.lower(): stem for stem in files}
    close = [stems[stem] for stem in difflib.get_close_matches(name.lower(), stems, n=3, cutoff=0.5)]
    if close:
        return f"the nearest names are {', '.join(close)}" if len(close) > 1 else f"the nearest name is {close[0]}"
    if not files:
        return "none is installed"
    return f"there are {', '.join(list(files)[:5])}{' and others' if len(files) > 5 else ''}"
