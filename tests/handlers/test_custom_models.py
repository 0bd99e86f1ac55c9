"""config.json, and the archives that follow it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from handlers.custom_archives import CustomArchives
from handlers.custom_models import CustomModel, config_file, read_config
from handlers.errors import ModelError
from handlers.reload import Target
from tests.conftest import EMBEDDED, HOME

MINE = {"model_path": "/models/mine", "ui_label": "Mine", "url_path": "mine", "requires_safety_checker": False}


def written(folder: Path, *models: Any, **more: Any) -> Path:
    file = folder / "config.json"
    before = file.stat().st_mtime if file.is_file() else 0
    file.write_text(json.dumps({"custom_models": list(models), **more}))
    os.utime(file, (before + 5, before + 5))  # whatever the clock's grain
    return file


def test_the_originals_file(tmp_path: Path) -> None:
    assert read_config(tmp_path / "config.json") == ([], None)
    models, token = read_config(written(tmp_path, MINE, hf_token="hf_x"))
    assert token == "hf_x"
    assert models == [CustomModel("/models/mine", "Mine", "mine", False, "demand")]
    assert models[0].archive == "custom-mine"
    shortest = read_config(written(tmp_path, {"model_path": "a/b", "url_path": "b"}))[0][0]
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
        read_config(written(tmp_path, MINE, MINE))
    file = tmp_path / "config.json"
    for text, sentence in (("{", "not valid JSON"), ("[]", "must be like"), ('{"custom_models": 3}', "must be like")):
        file.write_text(text)
        with pytest.raises(ModelError, match=sentence):
            read_config(file)


def test_where_the_file_is(tmp_path: Path) -> None:
    assert config_file(tmp_path, {}) == tmp_path / "config.json"
    assert config_file(tmp_path, {"SD_CONFIG": "/etc/sd.json"}) == Path("/etc/sd.json")


def test_archives_follow_the_file(tmp_path: Path) -> None:
    said: list[str] = []
    store = tmp_path / "store"
    nobody = Target("http://127.0.0.1:9", "http://127.0.0.1:9", store)
    archives = CustomArchives(nobody, HOME, {"SD_CONFIG": str(tmp_path / "config.json")}, {}, said.append)
    archives.update()
    assert not store.exists() and not said

    mine = MINE | {"model_path": str(EMBEDDED)}
    written(tmp_path, mine, {"model_path": str(tmp_path / "nothing"), "url_path": "gone", "ui_label": "Gone"})
    archives.update()
    assert [file.name for file in store.glob("*.mar")] == ["custom-mine.mar"]
    assert said[0] == "Custom model: Mine at /custom/mine"
    assert said[1].startswith("The custom model Gone cannot be served: There is no model at")

    archives.update()
    assert len(said) == 2  # nothing has changed
    written(tmp_path)
    archives.update()
    assert not list(store.glob("*.mar")) and "is gone from config.json" in said[-1]
    (tmp_path / "config.json").write_text("{")
    archives.update()
    assert "The custom models stay as they were." in said[-1]
