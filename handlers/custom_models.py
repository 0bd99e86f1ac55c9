"""config.json: the original server's file for custom models, and for the hub token. Needs the standard library alone.

{"hf_token": "hf_…",
 "custom_models": [{"model_path": "/models/mine", "ui_label": "Mine", "url_path": "mine",
                    "requires_safety_checker": true, "load": "demand"}]}
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlers.errors import ModelError
from handlers.wire import CUSTOM

FILE_NAME = "config.json"
LOAD = ("demand", "start")
_URL_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # also what TorchServe takes for a name


@dataclass(frozen=True)
class CustomModel:
    """One entry of `custom_models`.

    Attributes:
        model_path: a hub id, or the path of a diffusers folder or a single file.
        ui_label: its name in a client's menu.
        url_path: it is served at /custom/<url_path>.
        load: `demand`: with its first request; `start`: as soon as the server runs.
    """

    model_path: str
    ui_label: str
    url_path: str
    requires_safety_checker: bool = True
    load: str = "demand"

    @property
    def archive(self) -> str:
        return CUSTOM + self.url_path


def read_config(file: Path) -> list[CustomModel]:
    """The custom models; none without the file. Raises ModelError for a faulty file."""
    entries = _load(file).get("custom_models", [])
    if not isinstance(entries, list):
        raise ModelError(f"{file}: custom_models must be a list.")
    models: dict[str, CustomModel] = {}
    for i, entry in enumerate(entries):
        model = _entry(entry, f"{file}, custom model {i + 1}", file.parent)
        # two names that differ in case alone would be one file on Windows and on Macs
        if models.setdefault(model.url_path.casefold(), model) is not model:
            raise ModelError(f"{file}: url_path {model.url_path!r} is given twice.")
    return list(models.values())


def hub_token(file: Path) -> str | None:
    """The file's `hf_token`. A fault elsewhere in the file is none of this one's business."""
    try:
        token = _load(file).get("hf_token")
    except ModelError:
        return None
    return token.strip() or None if isinstance(token, str) else None


def _load(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8-sig"))  # Windows' editors write a mark before it
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise ModelError(f'{file} must be like {{"custom_models": [{{"model_path": …, "url_path": …}}]}}.')
    return config


def _entry(entry: Any, where: str, folder: Path) -> CustomModel:
    if not isinstance(entry, dict):
        raise ModelError(f"{where} must be an object with model_path and url_path.")
    path, url_path = entry.get("model_path"), entry.get("url_path")
    if not isinstance(path, str) or not path:
        raise ModelError(f"{where}: model_path must be a hub id or the path of a model.")
    if not isinstance(url_path, str) or not _URL_PATH.fullmatch(url_path):
        raise ModelError(f"{where}: url_path must be letters, digits, '_', '-' and '.', not {url_path!r}.")
    checked = entry.get("requires_safety_checker", True)
    if not isinstance(checked, bool):
        raise ModelError(f"{where}: requires_safety_checker must be true or false.")
    load = entry.get("load", LOAD[0])
    if load not in LOAD:
        raise ModelError(f"{where}: load must be one of {', '.join(LOAD)}, not {load!r}.")
    if (folder / path).exists():  # relative paths start beside the file
        path = str((folder / path).resolve())
    return CustomModel(path, str(entry.get("ui_label") or url_path), url_path, checked, load)
