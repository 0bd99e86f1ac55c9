"""A VAE instead of the model's own: a tiny one, one in a single file, one that does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import save_file

from handlers.errors import ModelError
from handlers.forward.conversions import Converter
from handlers.forward.openvino import OpenVINOForward, convert_vae
from handlers.wire import TASKS
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_alone, generated_together, load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save("sd1", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("tiny")
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(**blocks, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_tiny_vae_generates_what_the_stock_pipelines_do(
    engine: str, model: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stock, own = load(model, vae=str(tiny)), load(model, vae=str(tiny))
    options: list[Any] = []
    if engine == "openvino":
        converter = Converter(2, "float32", tmp_path)
        convert_vae(own["txt2img"].vae, converter)
        options.append(OpenVINOForward(converter))
    requests = [a_request(task, "a red apple", 1, 3, 7.5) for task in TASKS]
    images, _ = generated_together(own, requests, *options)
    for image, request in zip(images, requests, strict=True):
        alone = np.asarray(generated_alone(stock, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2
    assert "it runs in torch" not in caplog.text


def test_a_vae_in_a_single_file(model: Path, tmp_path: Path) -> None:
    torch.manual_seed(6)
    other = AutoencoderKL.from_config(AutoencoderKL.load_config(model / "vae"))
    file = tmp_path / "vae.safetensors"
    save_file(other.state_dict(), file)
    vae = load(model, vae=str(file))["img2img"].vae
    assert all((tensor == other.state_dict()[name]).all() for name, tensor in vae.state_dict().items())


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match="does not fit this model: it has 16 latent channels and 4 levels"):
        load(model, vae=str(tmp_path / "wide"))
    with pytest.raises(ModelError, match="missing is neither a folder on this machine nor a hub id"):
        load(model, vae=str(tmp_path / "missing"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(model, vae=str(model / "unet"))
