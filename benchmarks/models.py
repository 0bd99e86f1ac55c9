"""The models that are measured: the embedded one at any size, and one whose UNet costs next to nothing."""

import json
import shutil
from pathlib import Path

import torch

from handlers.pipelines.defaults import DEFAULTS_FILE
from tests.support import tiny_models
from tests.support.paths import EMBEDDED


def free_size_copy(folder: Path) -> Path:
    """The embedded model without its rule to generate at one size only, which the plain pipeline does not know."""
    shutil.copytree(EMBEDDED, folder)
    file = folder / DEFAULTS_FILE
    defaults = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({key: value for key, value in defaults.items() if key != "drawn_size"}))
    return folder


def null_unet(folder: Path) -> Path:
    """A whole model with a UNet of two blocks: what it takes to generate is all but the UNet."""
    torch.manual_seed(0)
    pipeline = tiny_models.make("sd1")
    pipeline.unet = tiny_models.unet(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None
    )
    pipeline.save_pretrained(folder)
    return folder
