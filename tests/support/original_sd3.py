"""Stable Diffusion 3's weights under the names of the original code, as single files have them."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.original_layout import vae_state

ENDS = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
}
BLOCK = {
    "attn.to_out.0.": "x_block.attn.proj.",
    "attn.to_add_out.": "context_block.attn.proj.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "attn.norm_q.": "x_block.attn.ln_q.",
    "attn.norm_k.": "x_block.attn.ln_k.",
    "attn.norm_added_q.": "context_block.attn.ln_q.",
    "attn.norm_added_k.": "context_block.attn.ln_k.",
    "attn2.norm_q.": "x_block.attn2.ln_q.",
    "attn2.norm_k.": "x_block.attn2.ln_k.",
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}
# three matrices in diffusers, one in the original
QKV = {
    "attn.to_{}.": "x_block.attn.qkv.",
    "attn.add_{}_proj.": "context_block.attn.qkv.",
    "attn2.to_{}.": "x_block.attn2.qkv.",
}


def save_sd3_file(pipeline: Any, file: Path) -> None:
    """Writes a Stable Diffusion 3 pipeline, without T5, as one .safetensors file."""
    state = {
        f"model.diffusion_model.{name}": tensor for name, tensor in transformer_state(pipeline.transformer).items()
    }
    state |= vae_state(pipeline.vae)
    for part, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        for key, tensor in getattr(pipeline, part).state_dict().items():
            if (name, key) != ("clip_l", "text_projection.weight"):  # which files do without: it changes nothing there
                state[f"text_encoders.{name}.transformer.{key}"] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, file)


def transformer_state(transformer: Any) -> dict[str, torch.Tensor]:
    given, made = dict(transformer.state_dict()), {}
    last = f"transformer_blocks.{transformer.config.num_layers - 1}.norm1_context"
    for name, tensor in given.items():
        if name.startswith(("norm_out.", last)):  # scale and shift are the other way round there
            tensor = torch.cat([*reversed(tensor.chunk(2))])
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.*)(weight|bias)", name)
        if match is None:
            made[_renamed(name, ENDS)] = tensor
            continue
        place, rest, kind = f"joint_blocks.{match[1]}.", match[2], match[3]
        for pattern, joined in QKV.items():
            if rest in [pattern.format(letter) for letter in "qkv"]:
                if rest == pattern.format("q"):
                    parts = [given[f"transformer_blocks.{match[1]}.{pattern.format(letter)}{kind}"] for letter in "qkv"]
                    made[f"{place}{joined}{kind}"] = torch.cat(parts)
                break
        else:
            made[f"{place}{_renamed(rest, BLOCK)}{kind}"] = tensor
    return made


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
