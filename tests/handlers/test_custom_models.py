"""config.json, and the archives that follow it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from handlers.custom_models import CustomModel, hub_token, read_config
from handlers.errors import ModelError

MINE = {"model_path": "/models/mine", "ui_label": "Mine", "url_path": "mine", "requires_safety_checker": False}


def written(folder: Path, *models: Any, **more: Any) -> Path:
    file = folder / "config.json"
    before = file.stat().st_mtime if file.is_file() else 0
    file.write_text(json.dumps({"custom_models": list(models), **more}))
    os.utime(file, (before + 5, before + 5))  # whatever the clock's grain
    return file


def test_the_originals_file(tmp_path: Path) -> None:
    assert read_config(tmp_path / "config.json") == [] and hub_token(tmp_path / "config.json") is None
    file = written(tmp_path, MINE, hf_token=" hf_x ")
    models = read_config(file)
    assert hub_token(file) == "hf_x"
    assert models == [CustomModel("/models/mine", "Mine", "mine", False, "demand")]
    assert models[0].archive == "custom-mine"
    shortest = read_config(written(tmp_path, {"model_path": "a/b", "url_path": "b"}))[0]
    assert shortest == CustomModel("a/b", "b", "b", True, "demand")


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("mine", "must be an object"),
        ({"url_path": "x"}, "model_path must be a hub id"),
        ({"model_path": "a/b"}, "url_path must be letters"),
        ({"model_path": "a/b", "url_path": "../x"}, "url_path must be letters"),
        ({"model_path": "a/b", "url_path": "x", "requires_safety_checker": "no"}, "must be true or false"),
        ({"model_path": "a/b", "url_path": "x", "load": "never"}, "must be one of demand, start"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path: Path, entry: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        read_config(written(tmp_path, entry))


def test_a_faulty_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="given twice"):
        read_config(written(tmp_path, MINE, MINE | {"url_path": "MINE"}))
    file = tmp_path / "config.json"
    for text, sentence in (
        ("[" * 100_000, "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "must be like"),
        ('{"custom_models": 3}', "must be a list"),
    ):
        file.write_text(text)
        with pytest.raises(ModelError, match=sentence):
            read_config(file)


def test_a_file_from_a_windows_editor_and_a_path_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = written(tmp_path, MINE | {"model_path": "mine"}, hf_token="hf_x")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_config(file)[0].model_path == str(tmp_path / "mine")
    assert hub_token(written(tmp_path, "a faulty entry", hf_token="hf_x")) == "hf_x"
