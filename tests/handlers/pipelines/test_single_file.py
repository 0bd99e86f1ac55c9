"""Single files: in the original's layout, and the configurations of the true shapes that come with the project."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from handlers.config import HandlerConfig
from handlers.errors import ModelError
from handlers.pipelines.families import needs_range
from handlers.pipelines.loading import load_pipelines
from handlers.pipelines.noise import generator
from tests.support import tiny_models, tiny_transformers
from tests.support.jobs import a_request, generated_alone
from tests.support.original_layout import count, save_single_file
from tests.support.original_sd3 import save_sd3_file
from tests.support.paths import CONFIGS, EMBEDDED

CPU = torch.device("cpu")


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The project's folder of configurations, with tiny models' in the place of Stable Diffusion 1's."""
    folder = tmp_path / "configs"
    shutil.copytree(CONFIGS, folder)
    made = tiny_models.save("sd1", tmp_path / "made")
    inpainting = tiny_models.save("inpainting", tmp_path / "made-inpainting")
    for kind, source in (("v1", made), ("inpainting", inpainting)):
        for part in ("unet", "vae", "text_encoder"):
            shutil.copy(source / part / "config.json", folder / kind / part / "config.json")
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(made / "tokenizer", folder / "tokenizer")
    return folder


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_hub")
def test_a_single_file_generates_what_its_folder_generates(configs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = tiny_models.make("sd1")
    file = tmp_path / "mine.safetensors"
    save_single_file(made, file)
    loaded = load_pipelines(file, ["txt2img", "masking"], CPU, torch.float32, HandlerConfig(), configs)
    images = [
        np.asarray(
            pipeline("a red apple", num_inference_steps=3, width=64, height=64, generator=generator(1)).images[0]
        )
        for pipeline in (made, loaded["txt2img"])
    ]
    assert (images[0] == images[1]).all()
    assert loaded["masking"].unet is loaded["txt2img"].unet


@pytest.mark.usefixtures("no_hub")
def test_a_single_file_for_inpainting_is_told_by_its_weights(configs: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = tiny_models.make("inpainting")
    file = tmp_path / "inpainting.safetensors"
    save_single_file(made, file)
    loaded = load_pipelines(file, ["masking"], CPU, torch.float32, HandlerConfig(), configs)["masking"]
    assert type(loaded) is type(made) and loaded.unet.config.in_channels == 9
    expected = made.unet.state_dict()
    assert all((tensor == expected[name]).all() for name, tensor in loaded.unet.state_dict().items())


@pytest.mark.usefixtures("no_hub")
def test_stable_diffusion_3_from_a_file_reads_prompts_without_t5(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = tiny_transformers.make("sd3_without_t5")
    # a large one is told by the number of its layers, its two encoders by their widths
    wide = made.text_encoder.config.to_dict() | {"hidden_size": 40, "intermediate_size": 40, "projection_dim": 40}
    made.text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**wide)).eval()
    made.tokenizer_2 = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", pad_token="!")
    made.text_encoder.text_projection.weight.data = torch.eye(tiny_models.WIDTH)
    width = tiny_models.WIDTH + 40
    made.transformer = tiny_transformers.sd3_transformer(
        num_layers=38, joint_attention_dim=width, pooled_projection_dim=width
    )
    folder, configs, file = tmp_path / "made", tmp_path / "configs", tmp_path / "mine.safetensors"
    made.save_pretrained(folder)
    shutil.copytree(CONFIGS, configs)
    shutil.rmtree(configs / "tokenizer")
    shutil.copytree(folder / "tokenizer", configs / "tokenizer")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        shutil.copytree(folder / part, configs / "sd35_large" / part, dirs_exist_ok=True)
        for weights in (configs / "sd35_large" / part).glob("*.safetensors"):
            weights.unlink()
    save_sd3_file(made, file)
    assert needs_range(file) and not needs_range(configs / "tokenizer")
    loaded = load_pipelines(file, ["txt2img", "masking"], CPU, torch.float32, HandlerConfig(), configs)
    request = a_request("txt2img", "a red house", 3, 3, 4.0)
    images = [np.asarray(generated_alone(one, request)) for one in ({"txt2img": made}, loaded)]
    assert (images[0] == images[1]).all()
    assert loaded["masking"].transformer is loaded["txt2img"].transformer


def test_a_pickled_single_file_only_when_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "mine.ckpt"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="pickled files, which can run any program"):
        load_pipelines(file, ["txt2img"], CPU, torch.float32, HandlerConfig(), CONFIGS)


@pytest.mark.usefixtures("no_hub")
def test_a_file_that_holds_something_else_is_a_sentence(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "lora.safetensors"
    save_file({"lora.up": torch.zeros(2, 2)}, file)
    with pytest.raises(ModelError, match=r"lora\.safetensors cannot be loaded"):
        load_pipelines(file, ["txt2img"], CPU, torch.float32, HandlerConfig(), CONFIGS)


# as counted in the published models
UNETS = {
    "v1": 859_520_964,
    "inpainting": 859_535_364,
    "v2": 865_910_724,
    "inpainting_v2": 865_925_124,
    "xl_base": 2_567_463_684,
    "xl_inpaint": 2_567_478_084,
}
TEXT_ENCODERS = {"v1": 123_060_480, "v2": 340_387_840, "xl_base": 123_060_480}


def config(kind: str, part: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((CONFIGS / kind / part / "config.json").read_text())
    return loaded


@pytest.mark.parametrize("kind", UNETS)
def test_the_configurations_have_the_true_shapes(kind: str) -> None:
    with torch.device("meta"):
        assert count(UNet2DConditionModel.from_config(config(kind, "unet"))) == UNETS[kind]
        assert count(AutoencoderKL.from_config(config(kind, "vae"))) == 83_653_863
        if kind in TEXT_ENCODERS:
            text = CLIPTextConfig(**config(kind, "text_encoder"))
            assert count(CLIPTextModel(text)) == TEXT_ENCODERS[kind]
        if kind == "xl_base":
            text = CLIPTextConfig(**config(kind, "text_encoder_2"))
            assert count(CLIPTextModelWithProjection(text)) == 694_659_840


@pytest.mark.parametrize(
    ("kind", "numbers"), [("sd3", 2_028_328_000), ("sd35_medium", 2_243_171_520), ("sd35_large", 8_056_627_520)]
)
def test_the_configurations_of_stable_diffusion_3_have_the_true_shapes(kind: str, numbers: int) -> None:
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(config(kind, "transformer"))
        assert count(transformer) == numbers
        assert count(AutoencoderKL.from_config(config(kind, "vae"))) == 83_819_683
    encoders = [config(kind, part)["projection_dim"] for part in ("text_encoder", "text_encoder_2")]
    assert sum(encoders) == transformer.config.pooled_projection_dim


def test_the_tokenizer_is_clips() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(CONFIGS / "tokenizer")
    ids = tokenizer("a photo of an astronaut riding a horse on mars").input_ids
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]
