"""The documents say what the code does."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from admin.archive import FRONTEND
from handlers.config import HandlerConfig
from launch.serve import argument_parser
from proxy.metrics import COUNTERS, ArchiveCollector
from proxy.settings import PREFIX, Settings
from proxy.telemetry import Counts
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


def test_every_variable_of_ours_is_documented() -> None:
    """Except those of the tests' and benchmarks' own commands."""
    folders = ("admin", "handlers", "launch", "proxy", "deploy")
    files = [HOME / "server.py", HOME / "Dockerfile", HOME / "compose.yaml"]
    files += [
        file for folder in folders for file in (HOME / folder).rglob("*") if file.suffix in (".py", ".yaml", ".cfg")
    ]
    read = {name for file in files for name in re.findall(r"\bSD_[A-Z0-9_]+\b", file.read_text(encoding="utf-8"))}
    texts = [(HOME / "docs" / name).read_text(encoding="utf-8") for name in ("deploy.md", "operations.md")]
    documented = set(re.findall(r"\bSD_[A-Z0-9_]+\b", CONFIGURATION + "".join(texts)))
    assert {name for name in read if not name.endswith("_")} <= documented


def test_every_option_of_the_server_is_documented() -> None:
    parser = argument_parser()
    options = {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    assert options == {name.partition(" ")[0] for name in _rows() if name.startswith("--")} | {"--help"}
    for action in parser._actions:
        assert action.help, action.option_strings


def test_every_metric_is_documented() -> None:
    described = [{"archive": "x", "activity": dict.fromkeys(COUNTERS, 0) | {"open_requests": 0, "stage_seconds": {}}}]
    families = [*Counts().registry.collect(), *ArchiveCollector(described).collect()]
    documented = set(re.findall(r"^\| `(sd_\w+)", (HOME / "docs" / "operations.md").read_text(encoding="utf-8"), re.M))
    assert documented == {family.name for family in families}


def test_the_limits_page_names_what_is_in_the_code() -> None:
    text = (HOME / "docs" / "limits.md").read_text(encoding="utf-8")
    found = re.findall(r"\| ([\d.,]+) s[^|]*\(`(\w+)\.([A-Z_]+)`", text)
    assert len(found) >= 6
    for value, module, name in found:
        (file,) = [*(HOME / "proxy").glob(f"{module}.py"), *(HOME / "handlers").rglob(f"{module}.py")]
        in_code = re.search(rf"^{name} = ([\d._]+)", file.read_text(encoding="utf-8"), re.M)
        assert in_code and float(in_code[1]) == float(value.replace(",", "")), (module, name)


@pytest.mark.parametrize("document", sorted(HOME.glob("docs/*.md")), ids=lambda file: file.name)
def test_files_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|handlers|proxy|admin|launch|deploy|benchmarks|models)/[\w./-]+)`", text):
        assert (HOME / name).exists(), name


def test_every_room_is_documented() -> None:
    text = (HOME / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [folder for folder in HOME.iterdir() if (folder / "__init__.py").is_file()]
    rooms += [folder for folder in (HOME / "handlers").iterdir() if (folder / "__init__.py").is_file()]
    for room in rooms:
        assert f"`{room.relative_to(HOME)}/`" in text, room
