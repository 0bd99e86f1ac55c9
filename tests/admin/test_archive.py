import json
import zipfile
from pathlib import Path

import pytest
import yaml

from admin import archive
from handlers.config import HandlerConfig
from handlers.errors import ModelError


def _read(path: Path, name: str) -> str:
    return zipfile.ZipFile(path).read(name).decode()


def test_an_archive_is_small_and_carries_its_code_as_a_package(tmp_path: Path) -> None:
    path = archive.build("txt2img", tmp_path, {"model": "default"})
    names = set(zipfile.ZipFile(path).namelist())
    assert path.stat().st_size < 200_000  # code alone, no weights
    assert {
        "txt2img.py",
        "model-config.yaml",
        "handlers/handler.py",
        "handlers/engine/loop.py",
        "handlers/__init__.py",
    } <= names
    assert not any("__pycache__" in name or "safetensors" in name for name in names)


def test_model_config_has_torchserves_keys_and_the_handlers_section(tmp_path: Path) -> None:
    config = yaml.safe_load(_read(archive.build("masking", tmp_path, {"device": "cpu"}), "model-config.yaml"))
    assert config["continuousBatching"] is True and config["maxWorkers"] == 1
    handler = HandlerConfig.from_mapping(config["handler"])
    assert (handler.device, handler.home, handler.model) == ("cpu", str(archive.HOME), "default")


@pytest.mark.parametrize(
    ("given", "expected"), [([], "auto"), (["--channels-last"], "always"), (["--no-channels-last"], "never")]
)
def test_the_layout_is_an_option(tmp_path: Path, given: list[str], expected: str) -> None:
    archive.main(["--model-store", str(tmp_path), *given, "txt2img"])
    config = yaml.safe_load(_read(tmp_path / "txt2img.mar", "model-config.yaml"))
    assert config["handler"]["channels_last"] == expected


def test_the_command_builds_the_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive.main(["--model-store", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["img2img.mar", "masking.mar", "txt2img.mar"]
    assert capsys.readouterr().out.count(" kB)") == 3


def test_other_versions_and_the_combined_archive_are_staged(tmp_path: Path) -> None:
    archive.main(["txt2img", "--version", "1.1", "--model-store", str(tmp_path)])
    archive.main(["--combined", "--model-store", str(tmp_path)])
    staged = tmp_path / ".staged"
    assert sorted(path.name for path in staged.iterdir()) == ["stable-diffusion.mar", "txt2img-1.1.mar"]
    model = json.loads(_read(staged / "txt2img-1.1.mar", "MAR-INF/MANIFEST.json"))["model"]
    assert (model["modelVersion"], model["handler"]) == ("1.1", "txt2img.py")


def test_a_custom_models_archive_serves_every_task(tmp_path: Path) -> None:
    path = archive.build("custom-mine", tmp_path, {})
    assert archive.tasks_of("custom-mine") == ("txt2img", "img2img", "masking")
    assert json.loads(_read(path, "MAR-INF/MANIFEST.json"))["model"]["handler"] == "stable_diffusion.py"


def test_an_unknown_task_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        archive.main(["sketch", "--model-store", str(tmp_path)])
    with pytest.raises(ModelError, match=r"handler\.speed is not a known key"):
        archive.build("txt2img", tmp_path, {"speed": 1})
    with pytest.raises(ModelError, match=r"handler\.max_size must be int"):
        archive.build("txt2img", tmp_path, {"max_size": "large"})
