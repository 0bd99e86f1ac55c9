"""Where an installation's files lie."""

from pathlib import Path

import pytest

from handlers.installation import Installation


def test_its_home_is_sd_home_or_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_HOME", "/told")
    assert Installation.find("/recorded").home == Path("/told")
    monkeypatch.delenv("SD_HOME")
    assert Installation.find("/recorded").home == Path("/recorded")


def test_where_config_json_is(tmp_path: Path) -> None:
    assert Installation(tmp_path, {}).config_file == tmp_path / "config.json"
    assert Installation(tmp_path, {"SD_CONFIG": "/etc/sd.json"}).config_file == Path("/etc/sd.json")
