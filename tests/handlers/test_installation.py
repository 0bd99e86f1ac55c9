"""Where an installation's files are."""

import re
from pathlib import Path

import pytest

from handlers.errors import ModelError
from handlers.installation import Installation
from tests.support.paths import HOME


def test_the_files_of_an_installed_servers_user_lie_in_the_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "user"))  # on Windows
    checkout = Installation(tmp_path, {})
    assert checkout.user_folder == tmp_path and checkout.config_file == tmp_path / "config.json"
    (tmp_path / "__init__.py").touch()  # as in the wheel
    installed = Installation(tmp_path, {})
    assert installed.user_folder == tmp_path / "user" / ".sd-api-server"
    assert installed.config_file == installed.user_folder / "config.json"
    assert installed.token_file == installed.user_folder / "token.txt"
    assert installed.embedded_model == tmp_path / "models" / "embedded"
    assert Installation(tmp_path, {"SD_CONFIG": "/my/config.json"}).config_file == Path("/my/config.json")


def test_its_home_is_the_variable_else_the_recorded_folder(tmp_path: Path) -> None:
    assert Installation.find("/recorded", {"SD_HOME": str(tmp_path)}).home == tmp_path
    assert Installation.find("/recorded", {"SD_HOME": ""}).home == Path("/recorded")


def test_torchserve_and_the_proxy_are_where_the_variables_say(tmp_path: Path) -> None:
    usual = Installation(tmp_path, {})
    assert usual.model_store == tmp_path / "model_store"
    assert (usual.management_url, usual.inference_url) == ("http://127.0.0.1:8081", "http://127.0.0.1:8080")
    named = Installation(
        tmp_path, {"SD_MODEL_STORE": "/s", "SD_MANAGEMENT_URL": "http://a:1", "SD_INFERENCE_URL": "http://a:2"}
    )
    assert (named.model_store, named.management_url, named.inference_url) == (Path("/s"), "http://a:1", "http://a:2")


@pytest.mark.parametrize("room", ["admin", "handlers", "launch"])
def test_no_other_module_looks_up_a_variable_of_ours(room: str) -> None:
    look_up = re.compile(r"""environ(ment)?(\.get\(|\[)["']SD_|getenv""")
    readers = [file.name for file in (HOME / room).rglob("*.py") if look_up.search(file.read_text(encoding="utf-8"))]
    assert readers == (["installation.py"] if room == "handlers" else [])


def test_what_images_say_about_their_origin_can_be_turned_off() -> None:
    usual = Installation(Path(), {"SD_METADATA": "", "SD_MARK": " "})
    assert usual.writes_parameters and usual.writes_mark
    silent = Installation(Path(), {"SD_METADATA": "none", "SD_MARK": "0"})
    assert not silent.writes_parameters and not silent.writes_mark
    with pytest.raises(ModelError, match="SD_METADATA must be parameters or none, not 'off'"):
        _ = Installation(Path(), {"SD_METADATA": "Off"}).writes_parameters
    with pytest.raises(ModelError, match="SD_MARK must be 1 or 0, not 'no'"):
        _ = Installation(Path(), {"SD_MARK": "no"}).writes_mark
