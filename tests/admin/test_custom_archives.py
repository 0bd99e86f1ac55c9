"""The archives of config.json's custom models follow the file."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from admin.archive import build
from admin.custom_archives import RETRY_S, CustomArchives
from admin.management import Management
from admin.reload import handler_settings
from admin.running_server import Target
from handlers.catalogue import FAILED, FOLDER, PREPARING, READY, Catalogue
from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.sources import ModelSource
from tests.handlers.test_custom_models import MINE, written
from tests.support.clock import Clock
from tests.support.paths import EMBEDDED, HOME
from tests.support.running import HANG_S, wait_for


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
    folders = {"SD_MODELS_DIR": str(tmp_path / "models"), "HF_HOME": str(tmp_path / "hub")}
    installed = Installation(HOME, {"SD_CONFIG": str(tmp_path / "config.json"), **folders})
    return lambda: CustomArchives(nobody, installed, said.append, clock), said, store


def updated(archives: CustomArchives) -> CustomArchives:
    archives.update()
    archives.finish()
    return archives


def entries(store: Path) -> dict[str, tuple[str, str]]:
    """What the catalogue says of each model: its state, and why."""
    return {model.name: (model.state, model.reason) for model in Catalogue(store / FOLDER).contents().models}


def test_archives_follow_the_file(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, said, store = following
    archives = make()
    updated(archives)
    assert not said

    mine = MINE | {"model_path": str(EMBEDDED)}
    written(tmp_path, mine, {"model_path": str(tmp_path / "nothing"), "url_path": "gone", "ui_label": "Gone"})
    updated(archives)
    assert [file.name for file in store.glob("custom-*")] == ["custom-mine.mar"]
    said.sort()  # they are prepared side by side
    assert said[0] == "Custom model: Mine at /custom/mine"
    assert said[1].startswith("The custom model Gone cannot be served: There is no model at")
    settings = handler_settings(store / "custom-mine.mar")
    assert (settings["model"], settings["safety_checker"], settings["dtype"]) == (str(EMBEDDED), False, "bfloat16")

    updated(archives)
    updated(make())  # another process finds all of it done
    assert said[2:] == [said[1]]
    written(tmp_path, mine | {"requires_safety_checker": True})
    updated(archives)
    assert handler_settings(store / "custom-mine.mar")["safety_checker"] is True
    written(tmp_path)
    updated(archives)
    assert not list(store.glob("custom-*")) and "Custom model mine was removed." in said
    (tmp_path / "config.json").write_text("{")
    updated(archives)
    assert "The custom models stay as they were." in said[-1]


def test_what_could_not_be_served_is_tried_again_later(
    tmp_path: Path,
    clock: Clock,
    following: tuple[Callable[[], CustomArchives], list[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make, said, store = following
    hub: list[Path] = []

    def download(*_: object) -> Path:
        if not hub:
            raise ModelError("The hub cannot be reached.")
        return hub[0]

    monkeypatch.setattr("admin.custom_archives.download", download)
    archives = make()
    written(tmp_path, {"model_path": "some/late", "url_path": "late"})
    updated(archives)
    hub.append(EMBEDDED)
    clock.now += RETRY_S
    updated(archives)
    assert said == ["The custom model late cannot be served: The hub cannot be reached."]
    assert not list(store.glob("custom-*"))
    clock.now += 1
    updated(archives)
    assert said[1] == "Custom model: late at /custom/late"
    # one whose files have changed is tried again at once
    local = tmp_path / "local"
    written(tmp_path, {"model_path": str(local), "url_path": "local"})
    updated(archives)
    assert entries(store)["local"][0] == FAILED
    shutil.copytree(EMBEDDED, local)
    updated(archives)
    assert entries(store)["local"] == (READY, "")


def test_the_folder_is_looked_at_again(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, _, store = following
    folder = tmp_path / "models"
    archives = updated(make())
    assert entries(store) == {}
    # a folder, a file with a name that is none for an address, one below, and what is no model
    shutil.copytree(EMBEDDED, folder / "Emoji")
    (folder / "below").mkdir()
    save_file({"x": torch.zeros(3)}, folder / "below" / "Dream Shaper!.safetensors")
    save_file({"x": torch.zeros(3)}, folder / "dream-shaper.safetensors")
    shutil.copytree(EMBEDDED, folder / "configs")
    (folder / "notes.txt").write_text("x")
    archives.update()
    assert {state for state, _ in entries(store).values()} == {PREPARING}
    archives.finish()
    assert entries(store) == dict.fromkeys(("Emoji", "Dream-Shaper-2", "dream-shaper"), (READY, ""))
    models = {model.name: model for model in Catalogue(store / FOLDER).contents().models}
    assert models["Dream-Shaper-2"].label == "Dream Shaper!" and models["Dream-Shaper-2"].weight_bytes == 6  # bfloat16
    assert 30e6 < models["Emoji"].weight_bytes < 300e6
    settings = handler_settings(store / "custom-Dream-Shaper-2.mar")
    assert settings["model"] == str(folder / "below" / "Dream Shaper!.safetensors")
    # one goes, one comes that is still being copied
    (folder / "dream-shaper.safetensors").unlink()
    whole = (folder / "below" / "Dream Shaper!.safetensors").read_bytes()
    late = folder / "late.safetensors"
    late.write_bytes(whole[:-1])
    (folder / "bad.ckpt").write_bytes(b"x")
    updated(archives)
    told = entries(store)
    assert set(told) == {"Emoji", "Dream-Shaper-2", "late", "bad"}
    assert told["late"] == (FAILED, f"{late} is not complete: it is being copied, or is damaged.")
    assert told["bad"][0] == FAILED and "pickled files" in told["bad"][1]
    late.write_bytes(whole)
    updated(archives)
    assert entries(store)["late"] == (READY, "")


def test_a_model_keeps_its_name_whatever_comes_beside_it(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, _, store = following
    weights = {"x": torch.zeros(3)}
    for folder in ("models/below", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    save_file(weights, tmp_path / "models" / "below" / "third.safetensors")
    archives = updated(make())
    assert set(entries(store)) == {"third"}
    save_file(weights, tmp_path / "models" / "third.safetensors")
    save_file(weights, tmp_path / "elsewhere" / "third.safetensors")
    (tmp_path / "models" / "linked.safetensors").symlink_to(tmp_path / "elsewhere" / "third.safetensors")
    updated(archives)
    assert set(entries(store)) == {"third", "third-2", "linked"}
    assert handler_settings(store / "custom-third.mar")["model"] == str(tmp_path / "models/below/third.safetensors")
    assert handler_settings(store / "custom-linked.mar")["model"] == str(tmp_path / "elsewhere" / "third.safetensors")


def test_a_name_of_the_file_s_goes_with_its_entry(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, _, store = following
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "third.safetensors"
    save_file({"x": torch.zeros(3)}, file)
    written(tmp_path, {"model_path": str(file), "url_path": "mine", "ui_label": "Mine"})
    archives = updated(make())
    assert set(entries(store)) == {"mine"}
    written(tmp_path)
    updated(archives)
    assert set(entries(store)) == {"third"}


def test_a_folder_that_is_no_whole_model_is_a_sentence(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, _, store = following
    for name in ("broken", "part"):
        shutil.copytree(EMBEDDED, tmp_path / "models" / name)
    (tmp_path / "models" / "broken" / "model_index.json").write_text("{")
    shutil.rmtree(tmp_path / "models" / "part" / "unet")
    updated(make())
    told = entries(store)
    assert [state for state, _ in told.values()] == [FAILED, FAILED]
    assert "part is not a whole model" in told["part"][1] and "unet" in told["part"][1]
    assert "model_index.json" in told["broken"][1]


def test_what_the_hub_s_cache_has_in_full_is_offered(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path]
) -> None:
    make, _, store = following
    for name in ("some--model", "some--part", "other--nothing"):
        repository = tmp_path / "hub" / "hub" / f"models--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc")
        (repository / "snapshots").mkdir()
        if name != "other--nothing":
            shutil.copytree(EMBEDDED, repository / "snapshots" / "abc")
    (
        tmp_path
        / "hub"
        / "hub"
        / "models--some--part"
        / "snapshots"
        / "abc"
        / "vae"
        / "diffusion_pytorch_model.safetensors"
    ).unlink()
    updated(make())
    assert entries(store) == {"some-model": (READY, "")}
    assert handler_settings(store / "custom-some-model.mar")["model"] == "some/model"
    # config.json's own entry for it comes first, and the main model is no other one
    written(tmp_path, {"model_path": "some/model", "url_path": "mine"})
    updated(make())
    assert entries(store) == {"mine": (READY, "")}
    written(tmp_path)
    build("txt2img", store, {"model": "some/model"})
    updated(make())
    assert entries(store) == {}
    assert Catalogue(store / FOLDER).contents().main_weight_bytes > 30e6


def test_one_that_cannot_be_prepared_delays_no_other(
    tmp_path: Path, following: tuple[Callable[[], CustomArchives], list[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _, store = following
    go_on = threading.Event()

    def download(source: ModelSource, *_: object) -> Path:
        if not source.is_local:
            assert go_on.wait(HANG_S)
            raise ModelError("The hub has no such model.")
        return Path(source.location)

    monkeypatch.setattr("admin.custom_archives.download", download)
    written(tmp_path, {"model_path": "slow/one", "url_path": "slow"}, MINE | {"model_path": str(EMBEDDED)})
    archives = make()
    archives.update()
    wait_for(lambda: archives.update() or entries(store)["mine"] == (READY, ""))
    assert entries(store)["slow"] == (PREPARING, "")
    go_on.set()
    archives.finish()
    assert entries(store)["slow"] == (FAILED, "The hub has no such model.")
    archives.close()
