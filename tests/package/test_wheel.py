"""What `pip install .` gives: the wheel's files, and the command `sd-api-server` far from the project's folder."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from launch.machine import free_ports
from tests.support.networks import save_esrgan
from tests.support.paths import HOME, SIDE
from tests.support.running import HANG_S, running
from tests.support.samples import b64, decode, sample_image

NOT_INSTALLED = {"benchmarks", "tests", "training"}
ENVIRONMENT = dict(os.environ)  # pip and pyenv have their files in the true home directory
SECRETS = ("token.txt", "config.json", "model_store/mine.mar", "logs/ts_log.log")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the project in which somebody has worked."""
    folder = tmp_path_factory.mktemp("build")
    project = folder / "project"
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "*.egg-info", "work")
    shutil.copytree(HOME, project, ignore=ignored)
    for name in SECRETS:
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("secret")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_server_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packed = {name.partition("/")[2] for name in names if name.startswith("sd_api_server/")}
    assert {name.partition("/")[0] for name in names} == {"sd_api_server", f"{wheel.name.split('-py3')[0]}.dist-info"}
    packages = {file.parent.name for file in HOME.glob("*/__init__.py")} - NOT_INSTALLED
    assert {name.partition("/")[0] for name in packed} == {
        *packages, "models", "__init__.py", "server.py", "config.properties", "log4j2.xml",
    }  # fmt: skip
    expected = {
        str(file.relative_to(HOME))
        for package in [*packages, "models"]
        for file in (HOME / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    # the wheel has the first as its __init__.py; the second is for people who look at the repository
    left_out = {"launch/installed.py", "models/embedded/contact-sheet.png"}
    assert packed >= expected - left_out and not packed & {*SECRETS, *left_out}
    assert wheel.stat().st_size < 50 * 2**20


def make_venv(python: str, folder: Path, *options: str) -> Path:
    """Returns the folder of its commands."""
    subprocess.run([python, "-m", "venv", *options, str(folder)], check=True, capture_output=True)
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a venv that has the wheel's files of its own, and sees the packages of the tests' environment."""
    folder = tmp_path_factory.mktemp("installed")
    commands = make_venv(sys.executable, folder / "venv", "--without-pip")
    pip = [sys.executable, "-m", "pip", "--python", str(commands / "python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # a path that is added like this has its own .pth files unread: that of the project's folder is one
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return commands / "sd-api-server"


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An unrelated folder to be in, and a home directory of a user with a custom model."""
    for name in ("SD_HOME", "SD_CONFIG", "SD_MODEL", "HF_TOKEN", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    own = tmp_path / "user" / ".sd-api-server"
    own.mkdir(parents=True)
    mine = {"model_path": str(HOME / "models" / "embedded"), "ui_label": "Mine", "url_path": "mine"}
    (own / "config.json").write_text(json.dumps({"custom_models": [mine]}))
    (tmp_path / "elsewhere").mkdir()
    # files of these names in the folder where somebody happens to be are not the server's
    (tmp_path / "elsewhere" / "config.json").write_text("{rubbish")
    (tmp_path / "elsewhere" / "handlers.py").write_text("raise SystemExit('imported')")
    yield tmp_path / "elsewhere"
    assert {entry.name for entry in (tmp_path / "elsewhere").iterdir()} == {"config.json", "handlers.py"}


def makes_an_image(command: Path, cwd: Path, folder: Path, upscaler: str = "") -> None:
    """The server makes one with the model, and doubles one by an `upscaler` of `save_esrgan`, if that is named."""
    with running(folder, command=[str(command)], cwd=cwd) as server:
        image = server.images("txt2img", seed=3, num_inference_steps=5)[0]
        generated = Image.open(io.BytesIO(base64.b64decode(image["base64"])))
        assert generated.size == (SIDE, SIDE) and np.ptp(np.asarray(generated)) > 50
        assert [model["ui_label"] for model in httpx.get(f"{server.url}/custom_models").json()] == ["Mine"]
        assert "<html" in httpx.get(f"{server.url}/").text
        if upscaler:
            small = sample_image(160, 64)
            (made,) = server.images("upscale", init_image=b64(small), scale=2, upscaler=upscaler)
            twice = np.asarray(small.resize((320, 128), Image.Resampling.NEAREST), dtype=int)
            assert 0 < np.abs(decode(made) - twice).mean() < 20


@pytest.mark.e2e
@pytest.mark.thorough
def test_the_command_makes_an_image_from_an_unrelated_folder(installed: Path, away: Path, tmp_path: Path) -> None:
    makes_an_image(installed, away, tmp_path)


@pytest.mark.thorough
def test_the_commands_doctor_looks_at_what_is_installed(installed: Path, away: Path) -> None:
    port = str(free_ports(1)[0])
    command = [str(installed), "doctor", "--port", port, "--model", "/no/such/model"]
    done = subprocess.run(command, cwd=away, capture_output=True, text=True, timeout=HANG_S)
    found = {line.split()[1]: line for line in done.stdout.splitlines()[:-1]}
    assert [name for name, line in found.items() if line.startswith("NO")] == ["Model", "Image"], done.stdout
    assert found["Packages"].endswith("installed") and " 0 installed" not in found["Packages"]
    assert str(away.parent / "user" / ".sd-api-server" / "token.txt") in found["Token"]


@pytest.mark.pythons
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_each_python_installs_it_by_the_lock_and_makes_an_image(
    which: str, away: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    find = ["sh", str(HOME / "deploy" / "find_python.sh"), "--all"]
    pythons = subprocess.run(find, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.splitlines()
    if which == "newest" and len(pythons) == 1:
        pytest.skip(f"{pythons[0]} is the only Python from 3.11 to 3.14 here")
    python = pythons[0 if which == "oldest" else -1]
    asked = subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True)
    if asked.stdout.strip() == sys.version.strip():
        # its packages are here, installed by the lock: those of the tests' environment
        makes_an_image(request.getfixturevalue("installed"), away, tmp_path)
        return
    with tempfile.TemporaryDirectory() as folder:  # some gigabytes, which pytest's own folders would keep
        commands = make_venv(python, Path(folder, "venv"))
        begin = time.monotonic()
        install = [commands / "python", "-m", "pip", "install", "--constraint", "constraints.txt", "."]
        done = subprocess.run(install, cwd=HOME, env=ENVIRONMENT, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr
        seconds = time.monotonic() - begin
        size = sum(file.lstat().st_size for file in Path(folder).rglob("*")) / 1e6
        said = f"{python}: installed in {seconds:.0f} s, {size:.0f} MB"
        command = [commands / "sd-api-server", "doctor", "--port", str(free_ports(1)[0])]
        doctor = subprocess.run(command, cwd=away, capture_output=True, text=True, timeout=HANG_S)
        assert doctor.returncode == 0 and doctor.stdout.endswith("The server can serve.\n"), doctor.stdout
        # upscalers from files need torchvision, which has to be of torch's own build: both are from PyPI here
        install = [commands / "python", "-m", "pip", "install", "--constraint", "constraints.txt", "spandrel"]
        subprocess.run(install, cwd=HOME, env=ENVIRONMENT, check=True, capture_output=True, timeout=HANG_S)
        save_esrgan(away.parent / "user" / ".sd-api-server" / "upscalers" / "2x_Small.safetensors")
        makes_an_image(commands / "sd-api-server", away, tmp_path, upscaler="2x_Small")
        with capsys.disabled():
            print(f"\n{said}, an image and the doctor's checks after {time.monotonic() - begin:.0f} s", flush=True)
