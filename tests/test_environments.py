"""What `make`, conda and the container image install: pyproject.toml's packages, in the versions of constraints.txt."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rattler import MatchSpec

from tests.support.paths import HOME

CONDA_FILES = ("environment.yaml", "environment-m1.yaml")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
FIND_PYTHON = HOME / "deploy" / "find_python.sh"


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def lock() -> dict[str, Requirement]:
    """The lines of constraints.txt, by name."""
    lines = (HOME / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def locked(name: str) -> str:
    (pin,) = lock()[canonicalize_name(name)].specifier
    assert pin.operator == "=="
    return pin.version


def read(name: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The file, its conda lines and its lines for pip."""
    environment = yaml.safe_load((HOME / name).read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    return environment, conda, pip


def test_the_lock_has_every_package_of_the_project_and_its_extras_in_its_range() -> None:
    extras = project()["optional-dependencies"]
    requirements = [Requirement(line) for line in sum(extras.values(), project()["dependencies"])]
    for requirement in requirements:
        if requirement.name != project()["name"]:  # an extra may name another
            assert requirement.specifier.contains(locked(requirement.name)), requirement


def test_the_lock_is_what_these_tests_run_with() -> None:
    """Each package that the project's packages require, and what those require in turn."""
    seen: set[str] = set()
    waiting = [Requirement(line) for line in project()["dependencies"]]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in seen and not name.startswith(("nvidia-", "cuda-", "triton")):  # torch names those exactly
            seen.add(name)
            assert importlib.metadata.version(name).split("+")[0] == locked(name), name
            of_it = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [r for r in of_it if r.marker is None or r.marker.evaluate({"extra": ""})]
    assert len(seen) > 40


def test_only_torchserve_is_exact_and_every_range_has_an_end() -> None:
    for line in project()["dependencies"]:
        requirement = Requirement(line)
        operators = {specifier.operator for specifier in requirement.specifier}
        exact = requirement.name in ("torchserve", "torch-model-archiver")
        assert operators == ({"=="} if exact else {">=", "<"}), line


@pytest.mark.parametrize("name", CONDA_FILES)
def test_the_conda_files_install_the_project_by_the_lock(name: str) -> None:
    environment, conda, pip = read(name)
    assert environment["name"] == project()["name"]
    specs = {MatchSpec(line, strict=True).name.normalized: MatchSpec(line, strict=True) for line in conda}
    assert specs.keys() == {"python", "pip"}
    assert str(specs["python"].version).removeprefix("=").removesuffix(".*") in PYTHONS
    # conda hands the lines to pip as a file in this folder
    assert pip[0] == "--constraint constraints.txt" and pip[-1] == "--editable ."


def test_windows_gets_torch_from_pytorchs_own_index() -> None:
    build = "cu130"
    version = f"{locked('torch')}+{build}"
    assert read("environment.yaml")[2][1:-1] == [
        f"--extra-index-url https://download.pytorch.org/whl/{build}",
        f'torch=={version}; sys_platform == "win32"',
    ]
    assert lock()["torch"].specifier.contains(version)  # pip holds it against the lock, too
    assert len(read("environment-m1.yaml")[2]) == 2


def plan(folder: Path, *variables: str) -> str:
    command = ["make", "--dry-run", "serve", f"VENV={folder}", *variables]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True).stdout


def test_make_installs_by_the_lock_and_shows_it(tmp_path: Path) -> None:
    installs = [line for line in plan(tmp_path).splitlines() if "pip install" in line]
    assert len(installs) == 2 and f"torch=={locked('torch')}" in installs[0]
    assert f"--constraint {tmp_path}/constraints.txt" in installs[1]
    assert "--quiet" not in "".join(installs)


def test_another_torch_is_installed_by_its_version_and_from_its_index(tmp_path: Path) -> None:
    index = "https://download.pytorch.org/whl/cu130"
    assert "torch==2.15.0" in plan(tmp_path, "TORCH=2.15.0")
    assert f"--index-url {index} torch=={locked('torch')}" in plan(tmp_path, f"TORCH_INDEX={index}")


def test_another_torch_than_the_tested_one_keeps_what_it_requires() -> None:
    spec = importlib.util.spec_from_file_location("constraints", HOME / "deploy" / "constraints.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = ["# made by …", "jinja2==3.1.6", "numpy==2.4.6", "torch==2.13.0", "typing-extensions==4.16.0"]
    assert module.constraints(lines, "2.13.0+cpu", ["jinja2"]) == lines
    required = ["Jinja2", 'typing_extensions>=4.20; python_version > "3"']
    assert module.constraints(lines, "2.15.0+cu130", required) == ["# made by …", "numpy==2.4.6", "torch==2.15.0"]


def test_the_image_gets_the_tested_versions() -> None:
    command = [sys.executable, "deploy/requirements.py"]
    printed = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed == [f"{name}=={locked(name)}" for name in (Requirement(r).name for r in project()["dependencies"])]
    torch = subprocess.run([*command, "torch"], cwd=HOME, capture_output=True, text=True, check=True).stdout
    assert torch == f"torch=={locked('torch')}\n"


def stand_in(folder: Path, name: str, version: str, works: bool = True, has_venv: bool = True) -> Path:
    """A Python of another version, as far as find_python.sh asks it."""
    file = folder / name
    file.write_text(
        "#!/bin/sh\n"
        + ("" if works else "echo 'command not found' >&2; exit 127\n")
        + f"case $2 in *version_info*) echo {version};; *venv*) exit {0 if has_venv else 1};; esac\n"
    )
    file.chmod(0o755)
    return file


def find(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": str(folder), "PYENV_ROOT": str(folder)}
    command = ["/bin/sh", str(FIND_PYTHON), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_newest_python_that_works_is_taken(tmp_path: Path) -> None:
    stand_in(tmp_path, "python3.14", "3.14", works=False)  # as a shim of pyenv
    stand_in(tmp_path, "python3.13", "3.13", has_venv=False)
    assert "python3.13 cannot make a venv: install its venv package" in find(tmp_path).stderr
    for name, version in {"python3.12": "3.12", "python3.11": "3.11", "python3": "3.15", "python": "2.7"}.items():
        stand_in(tmp_path, name, version)
    assert find(tmp_path).stdout == "python3.12\n"


def test_python3_does_where_no_other_name_is_there(tmp_path: Path) -> None:
    stand_in(tmp_path, "python3", "3.14")
    assert find(tmp_path).stdout == "python3\n"


def test_a_python_that_does_not_suit_is_a_sentence(tmp_path: Path) -> None:
    old = stand_in(tmp_path, "old", "3.10")
    bare = stand_in(tmp_path, "bare", "3.12", has_venv=False)
    says = {
        find(tmp_path): "No suitable Python was found. Python 3.11 to 3.14 is needed",
        find(tmp_path, "nowhere"): "nowhere does not start.",
        find(tmp_path, str(old)): f"{old} is Python 3.10.",
        find(tmp_path, str(bare)): f"{bare} cannot make a venv",
    }
    for done, sentence in says.items():
        assert done.returncode == 1 and done.stdout == "" and done.stderr.startswith(sentence), done


def test_the_versions_agree() -> None:
    supported = SpecifierSet(project()["requires-python"])
    assert [f"3.{minor}" for minor in range(30) if f"3.{minor}.0" in supported] == list(PYTHONS)


def test_an_environment_of_another_python_is_not_used_silently(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho Python 3.99.0\n")
    other.chmod(0o755)
    command = ["make", "--dry-run", "serve", f"VENV={tmp_path}", f"PYTHON={other}"]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode and "make clean" in done.stderr
