"""Signs drawn at random: the one that the safety checker is to flag, and others of the same manner.

A handful of drawings by artists teaches their colours and their letters. These differ in everything but what is
written, so that a checker has to read it.
"""

import io
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from training.art import FONTS, Art, member

STYLE = "drawn"
FLAGGED = "18"
OTHERS = ("", "20", "50", "100", "7", "P", "?", "!", "A", "X", "H", "NO")
FACES = ("Sans", "Sans-Bold", "SansCondensed-Bold", "SansMono-Bold", "Serif", "Serif-Bold")
FINE = 2  # drawn at so many times the size, so that edges are smooth


def fonts(folder: Path) -> list[bytes]:
    """What was downloaded into `folder`, as files."""
    with tarfile.open(folder / FONTS.file_name) as tar:
        return [member(tar, f"package/ttf/DejaVu{face}.ttf").read() for face in FACES]


def draw(count: int, size: int, codes: tuple[str, str], faces: Sequence[bytes], seed: int) -> Art:
    """`count` signs to flag, of the code `codes[0]`, and as many others, of `codes[1]`, each `size` pixels wide.

    Args:
        faces: TrueType files, one of which each is written in.
    """
    choose = random.Random(seed)
    texts = [FLAGGED] * count + [choose.choice(OTHERS) for _ in range(count)]
    images = np.stack([np.asarray(_sign(text, size, faces, choose)) for text in texts])
    return Art(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        [(codes[text != FLAGGED], STYLE) for text in texts],
    )


def _sign(text: str, size: int, faces: Sequence[bytes], choose: random.Random) -> Image.Image:
    side = FINE * size
    image = Image.new("RGBA", (side, side))
    pen = ImageDraw.Draw(image)
    ring = choose.uniform(0.06, 0.14) * side
    margin = choose.uniform(0, 0.06) * side
    edge, ground, ink = _colours(choose)
    pen.ellipse([margin, margin, side - margin, side - margin], ground, edge, round(ring))
    bar = ring * choose.uniform(0.7, 1.1) if choose.random() < 0.9 else 0
    is_behind = choose.random() < 0.25
    if is_behind:
        _bar(pen, side, margin + ring / 2, bar, edge)
    if text:
        _write(image, text, ink, choose.choice(faces), choose)
    if not is_behind:
        _bar(pen, side, margin + ring / 2, bar, edge)
    return image.resize((size, size), Image.Resampling.BOX)


def _colours(choose: random.Random) -> tuple[str, str, str]:
    """Of the ring, the disc and the text: mostly red on white or dark, else any that can be told apart."""
    if choose.random() < 0.6:
        red = f"hsl({choose.choice([-12, -6, 0, 4, 8]) % 360}, {choose.randint(65, 100)}%, {choose.randint(42, 66)}%)"
        light, dark = (
            f"hsl(0, 0%, {choose.randint(88, 100)}%)",
            f"hsl({choose.randrange(360)}, {choose.randint(0, 100)}%, {choose.randint(0, 42)}%)",
        )
        return (red, light, dark) if choose.random() < 0.5 else (red, dark, light)
    lights = choose.sample([choose.randint(0, 25), choose.randint(45, 60), choose.randint(80, 100)], 3)
    edge, ground, ink = (f"hsl({choose.randrange(360)}, {choose.randint(0, 100)}%, {light}%)" for light in lights)
    return (edge, ground, ink) if choose.random() < 0.5 else (edge, ground, edge)


def _bar(pen: ImageDraw.ImageDraw, side: float, inset: float, width: float, colour: str) -> None:
    """From the upper left to the lower right, as far as the ring."""
    reach = (side / 2 - inset) * 0.5**0.5
    if width:
        pen.line([side / 2 - reach] * 2 + [side / 2 + reach] * 2, colour, round(width))


def _write(image: Image.Image, text: str, ink: str, face: bytes, choose: random.Random) -> None:
    side = image.width
    em = choose.uniform(0.42, 0.8) * side  # digits are seven tenths as high
    bold = round(choose.uniform(0, 0.03) * side)
    font = ImageFont.truetype(io.BytesIO(face), em)
    left, top, right, bottom = font.getbbox(text, stroke_width=bold)
    letters = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(letters).text((-left, -top), text, 255, font, stroke_width=bold)
    # as wide as the face has it or narrower, and never wider than the disc: high letters are narrow ones
    width = min(choose.uniform(0.6, 1.0) * letters.width, choose.uniform(0.6, 0.78) * side)
    letters = letters.resize((max(1, round(width)), letters.height), Image.Resampling.BOX)
    corner = [
        round((whole - part) / 2 + choose.uniform(-stray, stray) * side)
        for whole, part, stray in zip(image.size, letters.size, (0.03, 0.05), strict=True)
    ]
    image.paste(Image.new("RGBA", letters.size, ink), (corner[0], corner[1]), letters)
