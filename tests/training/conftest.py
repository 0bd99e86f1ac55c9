"""Drawings made up here, served by a local registry as the packages of the real ones, and a run on them."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator

import pytest
from PIL import Image, ImageFont

from training import __main__ as command
from training import art, concepts, signs, tokenizer
from training.config import PRESETS, Run

LABELS = {"1F34E": "red apple", "1F499": "blue heart", "1F51E": concepts.FLAGGED, "1F6AB": "prohibited"}
COLOURS = ("red", "blue", "black", "orange")


def tarball(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def package_files(package: art.Package) -> dict[str, bytes]:
    """What the package of this name holds, as far as the recipe reads it."""
    if package == art.NAMES:
        entries = [
            {"hexcode": f"{code}-FE0F", "label": label, "tags": ["thing"], "group": 4} for code, label in LABELS.items()
        ]
        return {"en/compact.json": json.dumps(entries).encode()}
    if package == art.FONTS:
        return {f"ttf/DejaVu{face}.ttf": ImageFont.load_default(10).font_bytes for face in signs.FACES}
    if package == art.STYLES["3d"]:
        images = {}
        for code, colour in zip(LABELS, COLOURS, strict=True):
            buffer = io.BytesIO()
            Image.new("RGBA", (32, 32), colour).save(buffer, "WEBP", lossless=True)
            images[f"assets/{code.lower()}-fe0f.webp"] = buffer.getvalue()
        return images
    other_names = art.OTHER_NAMES if package == art.CHECKER_STYLES["firefox"] else {}
    names = [label.replace(" ", "-") for label in LABELS.values()]
    icons = {
        other_names.get(name, name): {"body": f'<circle cx="8" cy="8" r="7" fill="{colour}"/>'}
        for name, colour in zip(names, COLOURS, strict=True)
    }
    chars = {code.lower(): label.replace(" ", "-") for code, label in LABELS.items()}
    return {
        "icons.json": json.dumps({"icons": icons, "width": 16, "height": 16}).encode(),
        "chars.json": json.dumps(chars if package in art.STYLES.values() else {}).encode(),
    }


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An npm registry and a Python package index on loopback, with packages of the true names and layouts."""
    folder = tmp_path_factory.mktemp("registry")
    styles = art.STYLES | art.CHECKER_STYLES | art.JUDGE_STYLES
    for package in (*styles.values(), art.FONTS, art.NAMES):
        home = folder / package.name
        (home / "-").mkdir(parents=True)
        data = tarball(package_files(package))
        (home / "-" / package.file_name).write_bytes(data)
        about = {"dist": {"shasum": hashlib.sha1(data).hexdigest()}}
        (home / package.version).write_text(json.dumps(about))
    # a folder's listing is what pip takes for an index's page
    (folder / "simple" / "open-clip-torch").mkdir(parents=True)
    with zipfile.ZipFile(folder / "simple" / "open-clip-torch" / tokenizer.WHEEL, "w") as wheel:
        merges = "#version\nr e\nre d</w>\na p\nap p\napp l\nappl e</w>\nz z</w>\n"
        wheel.writestr(tokenizer.MERGES, gzip.compress(merges.encode()))
        about_wheel = {
            "METADATA": "Metadata-Version: 2.1\nName: open_clip_torch\nVersion: 3.3.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in about_wheel.items():
            wheel.writestr(f"open_clip_torch-3.3.0.dist-info/{name}", text)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Iterator[Run]:
    """A run whose art has been fetched and rendered."""
    folder = tmp_path_factory.mktemp("work")
    listed = folder / "concepts.txt"
    listed.write_text(
        "# read over\nred apple = red apple, apple\nblue heart\nno one under eighteen = adults only, nsfw\n"
    )
    run = Run(PRESETS["smoke"], folder=folder, concepts=listed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPM_CONFIG_REGISTRY", registry)
        for variable in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CONSTRAINT"):
            patch.delenv(variable, raising=False)
        patch.setenv("PIP_INDEX_URL", f"{registry}/simple")
        command.perform("fetch", run, None, folder)
        yield run
