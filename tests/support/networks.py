"""Small LoRAs, embeddings, ControlNets and upscalers with random weights, in the layouts that people's files have."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel, ControlNetModel, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.support import tiny_models

TEXT = ["q_proj", "out_proj", "fc1"]
UNET = ["to_q", "to_v"]
CONVOLUTIONS = ["conv1", "conv2"]  # which LoCon changes too


def save_lora(
    file: Path,
    family: str = "sd1",
    seed: int = 1,
    parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2"),
    layout: str = "diffusers",
    convolutions: bool = False,
) -> Path:
    """Writes a LoRA for a tiny model of `family`, in the layout of `diffusers` or of `kohya`'s scripts."""
    torch.manual_seed(seed)
    pipeline = tiny_models.make(family)
    states: dict[str, dict[str, torch.Tensor]] = {}
    for part in parts:
        module = getattr(pipeline, part, None)
        if module is None:
            continue
        targets = TEXT if "text" in part else UNET + CONVOLUTIONS * convolutions
        module.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets))
        states[part] = {name: 0.5 * tensor for name, tensor in get_peft_model_state_dict(module).items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    if layout == "diffusers":
        save_file({f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}, file)
    else:
        kohya = {"unet": "unet", "text_encoder": "te1" if "text_encoder_2" in states else "te", "text_encoder_2": "te2"}
        save_file(
            {_kohya(kohya[part], name): value for part, state in states.items() for name, value in state.items()}
            | {
                _kohya(kohya[part], name).replace("lora_down.weight", "alpha"): torch.tensor(1.0)
                for part, state in states.items()
                for name in state
                if "lora_A" in name
            },
            file,
        )
    return file


def save_transformer_lora(model: Path, file: Path) -> None:
    """Writes a LoRA for a model's transformer, strong enough to be seen."""
    torch.manual_seed(5)
    transformer = AutoModel.from_pretrained(str(model), subfolder="transformer")
    transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    state = get_peft_model_state_dict(transformer)
    save_file({f"transformer.{name}": 4 * value for name, value in state.items()}, file)


def _kohya(part: str, name: str) -> str:
    module, _, end = name.partition(".lora_")
    if part != "unet" and not module.startswith("text_model"):
        module = f"text_model.{module}"
    return f"lora_{part}_{module.replace('.', '_')}.lora_{'down' if end.startswith('A') else 'up'}.weight"


def embedding(count: int, seed: int = 1) -> torch.Tensor:
    """(count, width)"""
    return torch.randn(count, tiny_models.WIDTH, generator=torch.Generator().manual_seed(seed))


def save_embedding(file: Path, family: str = "sd1", count: int = 2, seed: int = 1) -> Path:
    """Writes an embedding of `count` vectors for a tiny model of `family`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if family == "sdxl":
        content: dict[str, Any] = {"clip_l": embedding(count, seed), "clip_g": embedding(count, seed + 100)}
    else:
        content = {"emb_params": embedding(count, seed)}
    save_file(content, file)
    return file


def save_controlnet(model: Path, folder: Path, seed: int = 1) -> None:
    """A ControlNet of random weights for a model, in diffusers' layout; a trained one's last layers are not zero."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(model / "unet"))
    for weight in net.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    net.save_pretrained(folder)


def save_esrgan(file: Path, features: int = 4, growth: int = 32) -> None:
    """An ESRGAN in its own layout that doubles an image: it repeats each pixel, and its one block adds some noise."""
    torch.manual_seed(1)
    sizes = {"model.0": (3, features), "model.1.sub.1": (features, features), "model.7": (features, 3)}
    sizes |= {f"model.{i}": (features, features) for i in (3, 5)}  # after the enlargement
    for dense in (1, 2, 3):
        for i in range(5):
            before = features + i * growth
            sizes[f"model.1.sub.0.RDB{dense}.conv{i + 1}.0"] = before, growth if i < 4 else features
    state: dict[str, torch.Tensor] = {}
    for name, (before, after) in sizes.items():
        weight = torch.randn(after, before, 3, 3) * 0.01
        if ".sub." not in name:
            torch.nn.init.dirac_(weight)
        state |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(after)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file)
