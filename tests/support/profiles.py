"""ICC profiles of version 2, made from nothing: of grey, and of RGB by look-up tables."""

import numpy as np
from PIL import Image, ImageCms

GRID = 17  # points of a look-up table along each channel


def _profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of a device class, a colour space and a connection space, which have four letters each."""
    description = b"desc\0\0\0\0" + (5).to_bytes(4, "big") + b"test\0" + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(0.9642, 1, 0.8249)} | tags
    table, data = len(tags).to_bytes(4, "big"), b""
    for name, content in tags.items():
        at = 128 + 4 + 12 * len(tags) + len(data)
        table += name + at.to_bytes(4, "big") + len(content).to_bytes(4, "big")
        data += content + bytes(-len(content) % 4)
    head = b"lcms\x02\x10\0\0" + kind + space + pcs + bytes(12) + b"acsp" + bytes(28) + tags[b"wtpt"][8:] + bytes(48)
    return (len(head) + 4 + len(table) + len(data)).to_bytes(4, "big") + head + table + data


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(round(value * 65536).to_bytes(4, "big") for value in values)


def linear_grey() -> bytes:
    """Grey with gamma 1."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv\0\0\0\0" + (1).to_bytes(4, "big") + b"\x01\x00"})


def swapped_rgb(both_ways: bool = True) -> bytes:
    """RGB whose red and blue are sRGB's blue and red, by look-up tables to Lab and, if `both_ways`, from it."""
    axis = np.linspace(0, 255, GRID).round().astype(np.uint8)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(
        1, -1, 3
    )  # the last one varies first
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    tags = {
        b"A2B0": _table(
            ImageCms.profileToProfile(Image.fromarray(points[..., ::-1].copy()), srgb, lab, outputMode="LAB")
        )
    }
    if both_ways:
        # Pillow has a and b around 0 as signed bytes, ICC around 128
        as_lab = Image.fromarray(points ^ np.array([0, 128, 128], dtype=np.uint8)).tobytes()
        back = ImageCms.profileToProfile(Image.frombytes("LAB", (GRID**3, 1), as_lab), lab, srgb, outputMode="RGB")
        tags[b"B2A0"] = _table(back, swap=True)
    return _profile(b"prtr" if both_ways else b"scnr", b"RGB ", b"Lab ", tags)


def _table(image: Image.Image | None, swap: bool = False) -> bytes:
    """An ICC lut8Type of GRID points with straight input and output curves."""
    assert image is not None
    values = np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(-1, 3)
    values = values[:, ::-1] if swap else values ^ np.array([0, 128, 128], dtype=np.uint8)
    unit = b"".join(round(value * 65536).to_bytes(4, "big") for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    straight = bytes(range(256)) * 3
    return b"mft1\0\0\0\0" + bytes([3, 3, GRID, 0]) + unit + straight + values.tobytes() + straight
