"""config.json, and the archives that follow it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlers.archive import build
from handlers.custom_archives import CustomArchives
from handlers.custom_models import CustomModel, config_file, hub_token, read_config, user_folder
from handlers.errors import ModelError
from handlers.reload import Management, Target, handler_settings
from tests.conftest import EMBEDDED, HOME

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


def test_where_the_file_is(tmp_path: Path) -> None:
    assert config_file(tmp_path, {}) == tmp_path / "config.json"
    assert config_file(tmp_path, {"SD_CONFIG": "/etc/sd.json"}) == Path("/etc/sd.json")


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], CustomArchives], list[str], Path]:
    """Makes CustomArchives of a store of which nothing is loaded, with what they say, and the store."""
    monkeypatch.setattr(Management, "models", lambda _: [])
    said: list[str] = []
    store = tmp_path / "store"
    build("txt2img", store, {"dtype": "bfloat16"})
    nobody = Target("http://127.0.0.1:9", "http://127.0.0.1:9", store)
    environment = {"SD_CONFIG": str(tmp_path / "config.json")}
    return lambda: CustomArchives(nobody, HOME, environment, said.append), said, store


def test_archives_follow_the_file(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, said, store = following
    archives = make()
    archives.update()
    assert not said

    mine = MINE | {"model_path": str(EMBEDDED)}
    written(tmp_path, mine, {"model_path": str(tmp_path / "nothing"), "url_path": "gone", "ui_label": "Gone"})
    archives.update()
    assert [file.name for file in store.glob("custom-*")] == ["custom-mine.mar"]
    assert said[0] == "Custom model: Mine at /custom/mine"
    assert said[1].startswith("The custom model Gone cannot be served: There is no model at")
    settings = handler_settings(store / "custom-mine.mar")
    assert (settings["model"], settings["safety_checker"], settings["dtype"]) == (str(EMBEDDED), False, "bfloat16")

    archives.update()
    make().update()  # another process finds all of it done
    assert said[2:] == [said[1]]
    written(tmp_path, mine | {"requires_safety_checker": True})
    archives.update()
    assert handler_settings(store / "custom-mine.mar")["safety_checker"] is True
    written(tmp_path)
    archives.update()
    assert not list(store.glob("custom-*")) and "is gone from config.json" in said[-1]
    (tmp_path / "config.json").write_text("{")
    archives.update()
    assert "The custom models stay as they were." in said[-1]


def test_what_could_not_be_served_is_tried_again_later(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said, store = following
    archives = make()
    late = tmp_path / "late"
    written(tmp_path, {"model_path": str(late), "url_path": "late"})
    archives.update()
    shutil.copytree(EMBEDDED, late)
    archives.update()
    assert len(said) == 1 and not list(store.glob("custom-*"))
    monkeypatch.setattr(archives, "_retry_at", 0.0)
    archives.update()
    assert said[1] == "Custom model: late at /custom/late"


def test_the_files_of_an_installed_servers_user_lie_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))  # on Windows
    assert user_folder(tmp_path) == tmp_path and config_file(tmp_path, {}) == tmp_path / "config.json"
    (tmp_path / "__init__.py").touch()  # as in the wheel
    assert user_folder(tmp_path) == tmp_path / "user" / ".sd-api-server"
    assert config_file(tmp_path, {}) == tmp_path / "user" / ".sd-api-server" / "config.json"
    assert config_file(tmp_path, {"SD_CONFIG": "/my/config.json"}) == Path("/my/config.json")
