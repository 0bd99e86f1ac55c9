"""The conda files: what conda and pip will read in them, held against pyproject.toml."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from rattler import MatchSpec

from tests.support.paths import HOME

PLATFORMS = {"environment.yaml": ("win32", "linux"), "environment-m1.yaml": ("darwin",)}


def read(name: str) -> tuple[dict[str, Any], list[str], list[str], list[str]]:
    """The file, its conda lines, its pip options and its pip requirements."""
    environment = yaml.safe_load((HOME / name).read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    options = [line for line in pip if line.startswith("-")]
    return environment, conda, options, [line for line in pip if not line.startswith("-")]


def project_requirements() -> dict[str, Requirement]:
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {Requirement(line).name: Requirement(line) for line in project["dependencies"]}


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_name_and_conda_lines(name: str) -> None:
    environment, conda, _, _ = read(name)
    assert environment["name"] == "sd-api-server"
    specs = {MatchSpec(line, strict=True).name.normalized: MatchSpec(line, strict=True) for line in conda}
    assert specs.keys() == {"python", "pip"}
    assert str(specs["python"].version) in ("3.11", "3.11.*", "=3.11")


@pytest.mark.parametrize(("name", "platform"), [(n, p) for n, platforms in PLATFORMS.items() for p in platforms])
def test_pip_lines_are_pyprojects_pins(name: str, platform: str) -> None:
    _, _, _, lines = read(name)
    chosen = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate({"sys_platform": platform})]
    pins = {requirement.name: requirement.specifier for requirement in chosen}
    expected = project_requirements()
    assert len(chosen) == len(pins) and pins.keys() == expected.keys()
    for package, specifier in pins.items():
        if package == "torch" and platform == "win32":
            assert str(specifier).startswith(str(expected["torch"].specifier) + "+cu")
        else:
            assert specifier == expected[package].specifier, package


def test_windows_gets_torch_from_pytorchs_own_index() -> None:
    _, _, options, lines = read("environment.yaml")
    (torch,) = [line for line in lines if line.startswith("torch==") and '== "win32"' in line]
    build = torch.split("+")[1].split(";")[0]
    assert options == [f"--extra-index-url https://download.pytorch.org/whl/{build}"]
    assert read("environment-m1.yaml")[2] == []


def test_another_torch_build_is_installed_from_its_index(tmp_path: Path) -> None:
    index = "https://download.pytorch.org/whl/cu130"
    command = ["make", "--dry-run", "serve", f"TORCH_INDEX={index}", f"VENV={tmp_path}"]
    plan = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True).stdout
    assert f"--index-url {index} torch{project_requirements()['torch'].specifier}" in plan
