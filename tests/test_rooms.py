"""The direction of imports between the rooms, read from the source. docs/architecture.md shows them."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.paths import HOME

# a room may import the rooms after it, and itself
ROOMS = [
    ["launch.installed"],  # what the wheel starts
    ["server"],
    ["launch"],
    ["admin"],
    ["handlers.txt2img", "handlers.img2img", "handlers.masking", "handlers.stable_diffusion", "handlers.reload"],
    ["handlers.handler"],
    ["handlers.worker"],
    ["handlers.engine"],
    ["handlers.pipelines", "handlers.hardware"],
    ["handlers.request"],
    ["handlers.imaging"],
    ["handlers.forward", "handlers.installation"],
    ["handlers.config", "handlers.custom_models", "handlers.catalogue"],
    ["handlers.wire"],
    ["handlers.errors"],
]
# those that need the standard library alone
PROXY_MAY_IMPORT = {"handlers.wire", "handlers.errors", "handlers.catalogue"}
LAUNCH_MAY_IMPORT = {"proxy.settings"}  # its options are checked before the proxy is started


def modules() -> list[Path]:
    folders = ("admin", "handlers", "launch", "proxy")
    return [HOME / "server.py", *(file for folder in folders for file in sorted((HOME / folder).rglob("*.py")))]


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = (HOME / Path(*node.module.split("."))).is_dir()
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if whole else [node.module]


def room_of(module: str) -> int | None:
    for number, names in enumerate(ROOMS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def family(module: str) -> str:
    """The folder or module of a room that a module belongs to."""
    return next(name for names in ROOMS for name in names if module == name or module.startswith(f"{name}."))


@pytest.mark.parametrize("file", modules(), ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    own = name_of(file)
    for imported in imports(file):
        if imported.partition(".")[0] not in ("admin", "handlers", "launch", "proxy", "server", "tests", "benchmarks"):
            continue
        if own.startswith("proxy"):
            allowed = imported.startswith("proxy") or any(imported.startswith(name) for name in PROXY_MAY_IMPORT)
            assert allowed, f"{own} imports {imported}: the proxy knows of the handlers only {PROXY_MAY_IMPORT}"
        elif imported.startswith("proxy"):
            may = own.startswith("launch") and any(imported.startswith(name) for name in LAUNCH_MAY_IMPORT)
            assert may, f"{own} imports {imported}"
        elif imported != "handlers":
            here, there = room_of(own), room_of(imported)
            if own == "handlers":
                continue
            assert here is not None and there is not None, f"{own} or {imported} is in no room: see ROOMS"
            assert there > here or family(own) == family(imported), f"{own} imports {imported}, which is above it"


def test_what_needs_no_torch_loads_none() -> None:
    light = (
        "proxy",
        "handlers.request",
        "handlers.imaging",
        "handlers.wire",
        "handlers.config",
        "handlers.custom_models",
        "handlers.catalogue",
    )
    names = [name for name in map(name_of, modules()) if name.startswith(light) and not name.endswith("__main__")]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "diffusers", "transformers", "accelerate", "peft"} & set(loaded.split())


@pytest.mark.parametrize("name", ["wire", "errors", "installation", "custom_models", "catalogue"])
def test_what_every_process_reads_needs_the_standard_library_alone(name: str) -> None:
    foreign = {imported.partition(".")[0] for imported in imports(HOME / "handlers" / f"{name}.py")}
    assert foreign <= {*sys.stdlib_module_names, "handlers"}


@pytest.mark.parametrize("folder", ["benchmarks", "training", "tests"])
def test_every_name_that_is_imported_is_there(folder: str) -> None:
    """No type checker reads these folders, and much of them is run by hand."""
    for file in (HOME / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            source = HOME / Path(*node.module.split("."))
            if not (HOME / node.module.partition(".")[0]).is_dir() or source.is_dir():
                continue
            there = names_in(ast.parse(source.with_suffix(".py").read_text(encoding="utf-8")).body)
            assert {alias.name for alias in node.names} <= there, (file.name, node.module)


def names_in(statements: Iterable[ast.stmt]) -> set[str]:
    """What a module defines or imports, also below an `if` or a `try`."""
    found: set[str] = set()
    for node in statements:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name for alias in node.names}
        else:
            found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found


def test_no_module_is_longer_than_300_lines() -> None:
    others = [file for folder in ("tests", "benchmarks", "training") for file in (HOME / folder).rglob("*.py")]
    long = {file.name: lines for file in [*modules(), *others] if (lines := len(file.read_text().splitlines())) > 300}
    assert not long
