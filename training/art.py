"""The art: fetched by package and pinned version, rendered once, kept as one tensor for each style.

Emoji are named by their code points, e.g. `1f34e`, without the variation selector `fe0f`.
"""

import hashlib
import io
import itertools
import json
import multiprocessing
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from training.config import registry


@dataclass(frozen=True)
class Package:
    """An npm package at a pinned version."""

    name: str
    version: str
    licence: str
    owner: str

    @property
    def file_name(self) -> str:
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"{registry()}/{self.name}/-/{self.file_name}"


# What the generator learns from: the style's name in prompts -> its package
STYLES = {
    "cartoon": Package("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google LLC"),
    "flat": Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation"),
    "3d": Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft Corporation"),
}
# What the safety checker learns from besides
CHECKER_STYLES = {
    "twemoji": Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter"),
    "emojione": Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "JoyPixels"),
    "monotone": Package("@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0", "JoyPixels"),
    "firefox": Package("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "Mozilla"),
    "high-contrast": Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft Corporation"),
    "streamline": Package("@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline"),
}
# What the judge learns from: other drawings of the same things, which the generator never sees
JUDGE_STYLES = {
    "noto-v1": Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google LLC"),
    "gradient": Package("@iconify-json/fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation"),
}
# an icon's name -> its other name in Firefox OS's package, of signs that are alike
OTHER_NAMES = {"no-one-under-eighteen": "nooneunder18symbol", "no-littering": "donotlittersymbol"}
# The fonts that signs are written in
FONTS = Package("dejavu-fonts-ttf", "2.37.3", "Bitstream Vera", "Bitstream, the DejaVu authors")
INK = "#2d4050"  # of drawings that leave their colour to the page; no background has it
NAMES = Package("emojibase-data", "17.0.0", "MIT", "Miles Johnson")


def fetch(folder: Path, packages: Iterable[Package]) -> None:
    """Downloads packages into `folder` and checks them against the registry's checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        file = folder / package.file_name
        if file.is_file():
            continue
        about = httpx.get(f"{registry()}/{package.name}/{package.version}", timeout=60).raise_for_status().json()
        with httpx.stream("GET", package.url, timeout=120, follow_redirects=True) as response:
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            with tqdm(desc=package.name, total=total, unit="B", unit_scale=True) as bar:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    bar.update(len(chunk))
        check(package.file_name, bytes(data), about["dist"]["shasum"])
        file.write_bytes(data)


def check(name: str, data: bytes, sha1: str) -> None:
    """Raises RuntimeError if a download is not what its registry states."""
    if hashlib.sha1(data).hexdigest() != sha1:
        raise RuntimeError(f"{name} does not have the checksum that the registry states: download it again.")


def code(hexcode: str) -> str:
    """The code points as this module writes them: lower case, without variation selectors."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def names(folder: Path) -> dict[str, dict[str, object]]:
    """code -> {label, tags} of every emoji, without skin tones, letters and flags."""
    with tarfile.open(folder / NAMES.file_name) as tar:
        entries = json.load(member(tar, "package/en/compact.json"))
    return {
        code(entry["hexcode"]): {"label": entry["label"], "tags": entry.get("tags", [])}
        for entry in entries
        if entry.get("group") not in (None, 2, 9)  # 2: skin tones and hair; 9: flags
    }


def render(folder: Path, size: int, styles: Mapping[str, Package]) -> None:
    """Renders styles to `<style>-<size>.npz`: `codes` (N,) and `images` (N, size, size, 4) uint8 RGBA."""
    known = set(names(folder))
    icon_names = _icon_names(folder)
    for style, package in styles.items():
        target = folder / f"{style}-{size}.npz"
        if target.is_file():
            continue
        with tarfile.open(folder / package.file_name) as tar:
            drawings = dict(reversed([*(_webp(tar) if style == "3d" else _svg(tar, icon_names))]))
        chosen = {name: data for name, data in reversed(drawings.items()) if name in known}
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
            rendered = pool.map(_rasterize, chosen.values(), itertools.repeat(size), chunksize=16)
            images = list(tqdm(rendered, desc=f"render {style}", total=len(chosen), unit="image"))
        np.savez(target, codes=np.array(list(chosen)), images=np.stack(images))


def member(tar: tarfile.TarFile, name: str) -> io.BufferedReader:
    file = tar.extractfile(name)
    assert file is not None, name
    return file


def _webp(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for entry in tar:
        if entry.name.endswith(".webp"):
            file = tar.extractfile(entry)
            assert file is not None
            yield code(Path(entry.name).stem), file.read()


def _icon_names(folder: Path) -> dict[str, str]:
    """code -> name of an icon. Not every Iconify package carries the table; they all use the same names."""
    found: dict[str, str] = {}
    for style in ("flat", "cartoon"):
        with tarfile.open(folder / STYLES[style].file_name) as tar:
            chars = json.load(member(tar, "package/chars.json"))
        found |= {code(hexcode): name for hexcode, name in chars.items()}
    return found


def _svg(tar: tarfile.TarFile, icon_names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    icons = json.load(member(tar, "package/icons.json"))
    for hexcode, name in icon_names.items():
        icon = icons["icons"].get(name) or icons["icons"].get(OTHER_NAMES.get(name, ""))
        if icon:
            width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{box}" color="{INK}">{icon["body"]}</svg>'
            )
            yield hexcode, svg.encode()


def _rasterize(data: bytes, size: int) -> np.ndarray:
    """(size, size, 4) uint8 RGBA."""
    if data.startswith(b"<svg"):
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_string=data.decode(), width=size, height=size))
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


class Art:
    """The rendered images of some styles.

    Attributes:
        images: (N, 4, size, size) uint8 RGBA.
        labels: (code, style) of each image.
    """

    def __init__(self, images: torch.Tensor, labels: list[tuple[str, str]]) -> None:
        self.images = images
        self.labels = labels

    @classmethod
    def load(cls, folder: Path, size: int, styles: list[str], only: set[str] | None = None) -> "Art":
        images, labels = [], []
        for style in styles:
            file = np.load(folder / f"{style}-{size}.npz")
            codes = file["codes"].tolist()
            chosen = [i for i, name in enumerate(codes) if only is None or name in only]
            labels += [(codes[i], style) for i in chosen]
            every = file["images"]
            # as channels of one image after the other: what is drawn from is made only once
            images.append(torch.from_numpy(every if only is None else every[chosen]).permute(0, 3, 1, 2))
        together = torch.empty(len(labels), 4, size, size, dtype=torch.uint8)
        return cls(torch.cat(images, out=together), labels)

    def with_more(self, other: "Art") -> "Art":
        """These images and then the other ones, which are as large."""
        return Art(torch.cat([self.images, other.images]), self.labels + other.labels)

    def to(self, device: str) -> "Art":
        return Art(self.images.to(device), self.labels)

    def __len__(self) -> int:
        return len(self.labels)
