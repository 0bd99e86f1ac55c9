"""Where an installation's files are."""

from pathlib import Path

import pytest

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
