"""A diffusers pipeline's weights under the names of the original Stable Diffusion code, as single files have them."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers.": "resblocks.",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(pipeline: Any, file: Path) -> None:
    """Writes a Stable Diffusion 1, 2 or XL pipeline as one .safetensors file."""
    state = {}
    for name, tensor in pipeline.unet.state_dict().items():
        state["model.diffusion_model." + _unet_name(name, pipeline.unet.config)] = tensor
    state |= vae_state(pipeline.vae)
    text = {name.removeprefix("text_model."): t for name, t in pipeline.text_encoder.state_dict().items()}
    if hasattr(pipeline, "text_encoder_2"):
        state |= _clip("conditioner.embedders.0.transformer.text_model.", text)
        second = pipeline.text_encoder_2.state_dict()
        text = {name.removeprefix("text_model."): tensor for name, tensor in second.items()}
        state |= _open_clip("conditioner.embedders.1.model.", text)
    elif pipeline.text_encoder.config.hidden_size == 1024:
        state |= _open_clip("cond_stage_model.model.", text)
    else:
        state |= _clip("cond_stage_model.transformer.text_model.", text)
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, file)


def vae_state(vae: Any) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in vae.state_dict().items():
        new = "first_stage_model." + _vae_name(name, len(vae.config.block_out_channels))
        is_projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new)
        state[new] = tensor[:, :, None, None] if is_projection else tensor  # a 1 x 1 convolution there
    return state


def _clip(prefix: str, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in text.items()}


def _open_clip(prefix: str, text: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in text.items():
        if match := re.fullmatch(r"(.*)\.self_attn\.(q|k|v)_proj\.(weight|bias)", name):
            if match[2] == "q":  # the three are one matrix there
                three = [text[f"{match[1]}.self_attn.{part}_proj.{match[3]}"] for part in "qkv"]
                state[f"{prefix}transformer.{_open_clip_name(match[1])}.attn.in_proj_{match[3]}"] = torch.cat(three)
        elif name == "text_projection.weight":
            state[prefix + "text_projection"] = tensor.T
        else:
            new = _open_clip_name(name)
            state[prefix + ("transformer." if new.startswith("resblocks") else "") + new] = tensor
    return state


def _open_clip_name(name: str) -> str:
    for old, new in OPEN_CLIP.items():
        name = name.replace(old, new)
    return name


def _renamed(rest: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if rest.startswith(old + "."):
            return new + rest.removeprefix(old)
    return rest


def _unet_name(name: str, config: Any) -> str:
    layers = config.layers_per_block
    blocks = len(config.block_out_channels)
    if match := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        place = f"input_blocks.{block * (layers + 1) + layer + 1}"
        return f"{place}.0.{_renamed(rest, UNET_RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op.{match[2]}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        place = {"resnets0": 0, "attentions0": 1, "resnets1": 2}[match[1] + match[2]]
        rest = _renamed(match[3], UNET_RESNET) if match[1] == "resnets" else match[3]
        return f"middle_block.{place}.{rest}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        block, kind, layer, rest = int(match[1]), match[2], int(match[3]), match[4]
        place = f"output_blocks.{block * (layers + 1) + layer}"
        return f"{place}.0.{_renamed(rest, UNET_RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"
    if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        block = int(match[1])
        assert block < blocks
        behind = 2 if "CrossAttn" in config.up_block_types[block] else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{behind}.conv.{match[2]}"
    return _renamed(name, UNET_ENDS)


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if match := re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(.*)", name):
        number = int(match[3]) if match[2] == "down" else blocks - 1 - int(match[3])
        rest = match[4].replace("resnets.", "block.").replace("samplers.0.conv", "sample.conv")
        return f"{match[1]}.{match[2]}.{number}.{rest}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.resnets\.(\d)\.(.*)", name):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.attentions\.0\.(.*)", name):
        return f"{match[1]}.mid.attn_1.{_renamed(match[2], VAE_ATTENTION)}"
    return name


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
