"""Small image files in tests/cases/, each for one kind of file that editors send."""

import io

import numpy as np
from PIL import Image, ImageCms

from tests.support.paths import HOME

FOLDER = HOME / "tests" / "cases"


def case(name: str) -> bytes:
    return (FOLDER / name).read_bytes()


def case_image(name: str) -> Image.Image:
    return Image.open(io.BytesIO(case(name)))


def profile_of(name: str) -> bytes:
    profile: bytes = case_image(name).info["icc_profile"]
    return profile


def as_seen(image: Image.Image) -> np.ndarray:
    """(height, width, 3) sRGB values as whole numbers: an RGB image as a viewer shows it, by its profile."""
    profile = image.info.get("icc_profile")
    if profile:
        shown = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        assert shown is not None
        image = shown
    return np.asarray(image.convert("RGB")).astype(int)
