"""Where an installation's files are."""

from pathlib import Path

import pytest

from handlers.errors import ModelError
from handlers.installation import Installation


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


def test_what_images_say_about_their_origin_can_be_turned_off() -> None:
    usual = Installation(Path(), {"SD_METADATA": "", "SD_MARK": " "})
    assert usual.writes_parameters and usual.writes_mark
    silent = Installation(Path(), {"SD_METADATA": "none", "SD_MARK": "0"})
    assert not silent.writes_parameters and not silent.writes_mark
    with pytest.raises(ModelError, match="SD_METADATA must be parameters or none, not 'off'"):
        _ = Installation(Path(), {"SD_METADATA": "Off"}).writes_parameters
    with pytest.raises(ModelError, match="SD_MARK must be 1 or 0, not 'no'"):
        _ = Installation(Path(), {"SD_MARK": "no"}).writes_mark
