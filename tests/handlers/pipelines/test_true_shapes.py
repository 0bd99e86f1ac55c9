"""Single files of the families in their true shapes. `make test-true-shapes`: they are gigabytes, of zeros mostly."""

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import diffusers
import pytest
import torch
import transformers
from transformers import CLIPTextConfig

from handlers.config import HandlerConfig
from handlers.pipelines.defaults import model_defaults
from handlers.pipelines.loading import load_pipelines
from tests.support.original_layout import save_single_file
from tests.support.original_sd3 import save_sd3_file
from tests.support.paths import CONFIGS

pytestmark = pytest.mark.true_shapes
PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")


class Parts(dict[str, Any]):
    """A pipeline's modules, each of whose tensors is told by its first and last number."""

    def __init__(self, kind: str) -> None:
        index = json.loads((CONFIGS / kind / "model_index.json").read_text())
        for part in PARTS:
            if (folder := CONFIGS / kind / part).is_dir():
                config = json.loads((folder / "config.json").read_text())
                with torch.device("meta"):
                    if part.startswith("text"):
                        self[part] = getattr(transformers, index[part][1])(CLIPTextConfig(**config))
                    else:
                        self[part] = getattr(diffusers, index[part][1]).from_config(config)
                self[part].to(torch.float16).to_empty(device="cpu")
                for name, tensor in self[part].state_dict().items():
                    if (kind[:2], part, name) == ("sd", "text_encoder", "text_projection.weight"):  # files have none
                        tensor.copy_(torch.eye(len(tensor)))
                    elif tensor.is_floating_point():
                        tensor.zero_()
                        tensor.view(-1)[0], tensor.view(-1)[-1] = mark(name + "first"), mark(name + "last")

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def mark(name: str) -> float:
    return crc32(name.encode()) % 2047 + 1  # a whole number that float16 and bfloat16's rounding tell apart


@pytest.mark.parametrize("kind", ["v1", "inpainting", "v2", "xl_base", "xl_inpaint", "sd3", "sd35_medium"])
def test_each_tensor_of_a_single_file_gets_to_its_place(kind: str, tmp_path: Path) -> None:
    made = Parts(kind)
    file = tmp_path / "model.safetensors"
    (save_sd3_file if kind.startswith("sd") else save_single_file)(made, file)
    task = "masking" if "inpaint" in kind else "txt2img"
    loaded = load_pipelines(file, [task], torch.device("cpu"), torch.float16, HandlerConfig(), CONFIGS)[task]
    file.unlink()
    for part, model in made.items():
        state = getattr(loaded, part).state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert state[name].shape == tensor.shape, (part, name)
            for place in (0, -1):
                assert state[name].view(-1)[place] == tensor.view(-1)[place], (part, name)
    size = 1024 if kind.startswith(("xl", "sd")) else {"v2": 768}.get(kind, 512)
    defaults = model_defaults(file, loaded)
    assert (defaults.width, defaults.height) == (size, size)
