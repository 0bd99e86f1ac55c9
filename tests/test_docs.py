"""The documents say what the code does."""

import re
from dataclasses import fields
from typing import Any

import pytest

from admin.archive import FRONTEND
from handlers.config import HandlerConfig
from proxy.settings import PREFIX, Settings
from tests.support.paths import HOME

CONFIGURATION = (HOME / "docs" / "configuration.md").read_text(encoding="utf-8")


def _rows() -> dict[str, tuple[str, ...]]:
    lines = [line for line in CONFIGURATION.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): tuple(rest) for name, *rest in cells}


@pytest.mark.parametrize(("prefix", "settings"), [(PREFIX, Settings), ("handler.", HandlerConfig)])
def test_every_setting_has_its_row(prefix: str, settings: Any) -> None:
    rows = _rows()
    names = set()
    for setting in fields(settings):
        name = prefix + (setting.name.upper() if prefix == PREFIX else setting.name)
        default = "" if setting.default == "" else f"`{setting.default}`"
        assert rows[name] == (default, setting.metadata["help"])
        names.add(name)
    assert {name for name in rows if name.startswith(prefix)} == names


def test_every_line_of_config_properties_and_of_the_archives_is_explained() -> None:
    properties = re.findall(r"^(\w+)=", (HOME / "config.properties").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*properties, *FRONTEND} <= _rows().keys()


def test_the_limits_agree_with_each_other() -> None:
    text = (HOME / "config.properties").read_text(encoding="utf-8")
    properties = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    assert int(properties["max_response_size"]) == HandlerConfig().max_response_bytes
    assert int(properties["max_request_size"]) == Settings().max_body_bytes


def test_the_documents_links_lead_somewhere() -> None:
    for document in [HOME / "README.md", *(HOME / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
