"""How an image is enlarged, for its second pass or for itself, by AUTOMATIC1111's names."""

from typing import Any

from PIL import Image

from handlers.imaging.fitting import fitted

# of the image's pixels; AUTOMATIC1111's `None` has no model of its own, and resizes all the same
PIXELS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}
# of its latents, which are never decoded: options of torch's `interpolate`
LATENTS: dict[str, dict[str, Any]] = {
    "Latent": {"mode": "bilinear"},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic"},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (nearest-exact)": {"mode": "nearest-exact"},
}
UPSCALERS = (*PIXELS, *LATENTS)


def enlarge(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    """The image at `size`, by one of PIXELS; of one of another shape, the middle.

    What a file's model has enlarged comes to its size by Lanczos.
    """
    return fitted(image, size, "crop", PIXELS.get(upscaler, Image.Resampling.LANCZOS))
