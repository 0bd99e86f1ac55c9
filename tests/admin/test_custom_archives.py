"""The archives of config.json's custom models follow the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from admin.archive import build
from admin.custom_archives import RETRY_S, CustomArchives
from admin.management import Management
from admin.reload import handler_settings
from admin.running_server import Target
from handlers.installation import Installation
from tests.handlers.test_custom_models import MINE, written
from tests.support.clock import Clock
from tests.support.paths import EMBEDDED, HOME


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def following(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[[], CustomArchives], list[str], Path]:
    """Makes CustomArchives of a store of which nothing is loaded, with what they say, and the store."""
    monkeypatch.setattr(Management, "models", lambda _: [])
    said: list[str] = []
    store = tmp_path / "store"
    build("txt2img", store, {"dtype": "bfloat16"})
    nobody = Target("http://127.0.0.1:9", "http://127.0.0.1:9", store)
    installed = Installation(HOME, {"SD_CONFIG": str(tmp_path / "config.json")})
    return lambda: CustomArchives(nobody, installed, said.append, clock), said, store


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
    assert not list(store.glob("custom-*")) and "was removed from config.json" in said[-1]
    (tmp_path / "config.json").write_text("{")
    archives.update()
    assert "The custom models stay as they were." in said[-1]


def test_what_could_not_be_served_is_tried_again_later(
    tmp_path: Path, clock: Clock, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, said, store = following
    archives = make()
    late = tmp_path / "late"
    written(tmp_path, {"model_path": str(late), "url_path": "late"})
    archives.update()
    shutil.copytree(EMBEDDED, late)
    clock.now += RETRY_S
    archives.update()
    assert len(said) == 1 and not list(store.glob("custom-*"))
    clock.now += 1
    archives.update()
    assert said[1] == "Custom model: late at /custom/late"
