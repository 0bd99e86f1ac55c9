"""The models that could be served: config.json's, those in the folder of models, complete ones of the hub's cache."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from handlers.custom_models import CustomModel
from handlers.installation import Installation
from handlers.pipelines.families import DENOISERS
from handlers.pipelines.hub import PICKLED
from handlers.pipelines.sources import SINGLE_FILE

MAX_NAME = 64  # characters, as of url_path
INDEX = "model_index.json"
NOT_MODELS = "configs"  # a folder beside the models: configurations for single files


@dataclass(frozen=True)
class FoundModel:
    """A model that could be served.

    Attributes:
        path: where its files are, if they are all here; None for a hub model that must be downloaded, as config.json
            wants it.
        configured: whether config.json says its name.
        stamp: another one once its files have changed.
    """

    model: CustomModel
    path: Path | None
    configured: bool = False
    stamp: object = None


def find_models(
    config: Iterable[CustomModel], main: Iterable[str], installed: Installation, before: Mapping[str, str] | None = None
) -> list[FoundModel]:
    """Those of config.json first, each model once, with names that differ.

    Args:
        main: where the main models are, which are no others: paths, or hub ids.
        before: the names that models have had without config.json, by `model_path`; they keep them, whatever
            comes beside them.
    """
    cached = dict(_in_cache(installed.hub_cache))
    found: list[FoundModel] = []
    for model in config:
        local = Path(model.model_path).expanduser()
        found.append(_stamped(model, local if local.exists() else cached.get(model.model_path), configured=True))
    known = {*main, *(one.model.model_path for one in found)}
    names = {one.model.url_path.casefold() for one in found}
    # those that are not in folders of folders first
    local_ones = sorted(_in_folder(installed.models), key=lambda path: (len(path.parts), path))
    others = [CustomModel(str(path.resolve()), path.stem if path.is_file() else path.name, "") for path in local_ones]
    others += [CustomModel(name, name, "") for name in cached]
    had = before or {}
    for model in sorted(others, key=lambda model: model.model_path not in had):
        if model.model_path not in known:
            model = replace(model, url_path=_name(had.get(model.model_path, model.ui_label), names))
            found.append(_stamped(model, cached.get(model.model_path) or Path(model.model_path)))
            known.add(model.model_path)
    return found


def snapshot(name: str, installed: Installation) -> Path | None:
    """Where the files of a hub model are; None if they are not all here."""
    return dict(_in_cache(installed.hub_cache)).get(name)


def _stamped(model: CustomModel, path: Path | None, configured: bool = False) -> FoundModel:
    if path is None:
        return FoundModel(model, None, configured)
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    stamp = []
    for file in files:
        try:
            about = file.stat()
        except OSError:  # it has just gone
            continue
        stamp.append((str(file), about.st_size, about.st_mtime_ns))
    return FoundModel(model, path, configured, tuple(stamp))


def _in_folder(folder: Path) -> Iterator[Path]:
    """diffusers' folders, and single files, also in folders of their own."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == NOT_MODELS:
            continue
        if (path.suffix in SINGLE_FILE and path.is_file()) or (path / INDEX).is_file():
            yield path
        elif path.is_dir():
            yield from _in_folder(path)


def _in_cache(cache: Path) -> Iterator[tuple[str, Path]]:
    """The models of the hub that are here with all their parts, by their ids: those with a denoiser."""
    for reference in sorted(cache.glob("models--*/refs/main")):
        folder = reference.parent.parent
        path = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
        if missing_part(path) is None:
            yield folder.name.removeprefix("models--").replace("--", "/"), path


def missing_part(folder: Path) -> str | None:
    """The first part that a model in diffusers' format lacks, or lacks the weights of: a name in the folder."""
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        parts = [name for name, kind in index.items() if isinstance(kind, list) and kind[0]]
    except (OSError, ValueError, LookupError, AttributeError):
        return INDEX
    if not any(name in parts for name in DENOISERS):
        return "unet"
    return next((part for part in parts if not _has_all(folder / part)), None)


def _has_all(part: Path) -> bool:
    files = [file for file in part.iterdir() if file.exists()] if part.is_dir() else []
    has_weights = any(file.suffix in (".safetensors", *PICKLED) for file in files)
    return bool(files) and (has_weights or not (part / "config.json").exists())  # of a tokenizer, other files


def _name(label: str, taken: set[str]) -> str:
    """A name for addresses and archives, which nobody else has; it is added to those `taken`."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", label).strip("-_.")[:MAX_NAME] or "model"
    name, number = plain, 1
    while name.casefold() in taken:
        number += 1
        name = f"{plain[: MAX_NAME - 4]}-{number}"
    taken.add(name.casefold())
    return name
