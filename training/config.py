"""What is trained, and for how long: one preset for two CPU cores, one for a data-centre GPU."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent
EMBEDDED = PROJECT / "models" / "embedded"


@dataclass(frozen=True)
class Stage:
    """How long one part trains: `steps` optimizer steps of `batch` images at the peak rate `lr`.

    `minutes` ends it earlier, with the whole schedule of the rate; then the same seed gives the same weights no more.
    """

    steps: int
    batch: int
    lr: float
    minutes: float | None = None


@dataclass(frozen=True)
class Preset:
    """Shapes and lengths of every part. Sizes in pixels; widths in channels.

    Attributes:
        image_size: the native size of the model; its latents are an eighth of it.
        art_size: the art is rendered once at this size, so that scaling it down afterwards costs no detail.
        vae_crop: the VAE learns from crops of this size, and from whole images in its last tenth.
        unet_attention: which of the UNet's resolutions have attention, as many as `unet_widths`.
        pool: encoded images that the UNet draws its batches from; one in `refresh` steps `encoded` of it are renewed.
        mixed_sizes: the share of the UNet's batches that are not square.
        average: the decay of the exponential average of the UNet's and the VAE's weights.
    """

    image_size: int = 256
    art_size: int = 320
    vae_widths: tuple[int, ...] = (24, 48, 96, 144)
    vae_crop: int = 96
    unet_widths: tuple[int, ...] = (48, 96, 144, 176)
    unet_attention: tuple[bool, ...] = (False, False, True, True)
    text_width: int = 192
    text_layers: int = 3
    vae: Stage = field(default_factory=lambda: Stage(9000, 16, 2e-3))
    decoder: Stage = field(default_factory=lambda: Stage(4000, 16, 5e-4))
    clip: Stage = field(default_factory=lambda: Stage(1200, 128, 1e-3))
    unet: Stage = field(default_factory=lambda: Stage(60_000, 32, 1.2e-3))
    safety: Stage = field(default_factory=lambda: Stage(1600, 96, 6e-4))
    judge: Stage = field(default_factory=lambda: Stage(1000, 96, 1e-3))
    pool: int = 6_000
    encoded: int = 32
    refresh: int = 12
    mixed_sizes: float = 0.1
    average: float = 0.999


PRESETS = {
    "cpu": Preset(),
    # the same shapes, hence the same speed, in nine minutes of training
    "gpu": Preset(
        vae_crop=128,
        vae=Stage(100_000, 48, 1.5e-3, minutes=2.4),
        decoder=Stage(100_000, 48, 4e-4, minutes=1.2),
        clip=Stage(3000, 256, 1e-3, minutes=2.5),
        unet=Stage(200_000, 256, 1.5e-3, minutes=5.5),
        safety=Stage(1500, 256, 6e-4, minutes=1.5),
        judge=Stage(3000, 256, 1e-3, minutes=3),
        pool=100_000,
        encoded=500,
        refresh=200,
        average=0.9995,
    ),
    # every stage in seconds: for tests of the recipe, not for images
    "smoke": Preset(
        image_size=64,
        art_size=80,
        vae_widths=(8, 8, 16, 16),
        vae_crop=32,
        unet_widths=(16, 32, 32),
        unet_attention=(False, True, True),
        text_width=32,
        text_layers=1,
        vae=Stage(3, 6, 1e-3),
        decoder=Stage(3, 6, 1e-3),
        clip=Stage(3, 8, 1e-3),
        unet=Stage(3, 4, 1e-3),
        safety=Stage(3, 8, 1e-3),
        judge=Stage(3, 8, 1e-3),
        pool=16,
        refresh=2,
        mixed_sizes=0.5,
    ),
}


@dataclass(frozen=True)
class Run:
    """One training run: a preset, a seed, the folder that holds its data and checkpoints, and what is learnt."""

    preset: Preset
    seed: int = 0
    folder: Path = HERE / "work"
    device: str = "cpu"
    concepts: Path = HERE / "concepts.txt"

    @property
    def art(self) -> Path:
        return self.folder / "art"

    @property
    def model(self) -> Path:
        """The finished parts, in full precision, as a diffusers folder."""
        return self.folder / "model"

    def checkpoint(self, stage: str) -> Path:
        return self.folder / f"{stage}.pt"

    def with_length(self, stage: str, steps: int | None, minutes: float | None) -> "Run":
        """The same run with another length of one stage."""
        part: Stage = getattr(self.preset, stage)
        changed = replace(part, steps=steps or part.steps, minutes=minutes or part.minutes)
        return replace(self, preset=replace(self.preset, **{stage: changed}))


def registry() -> str:
    """The npm registry, as npm's own setting names it."""
    return os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
