"""Models of every family with a transformer, with random weights: the true parts and layouts, a few channels wide."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.support.paths import EMBEDDED
from tests.support.tiny_models import WIDTH, text_config

FAMILIES = ("z_image", "sd3", "sd3_without_t5", "flux_dev", "flux_schnell", "qwen_image")
AXES = (4, 6, 6)  # of a head's rotary embedding
CHAT = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def save(family: str, folder: Path, **options: Any) -> Path:
    """Writes a model of `family` to `folder` in diffusers' format; `options` are save_pretrained's."""
    torch.manual_seed(0)
    make(family).save_pretrained(folder, **options)
    return folder


def make(family: str) -> Any:
    if family == "z_image":
        return ZImagePipeline(scheduler(shift=3.0), vae(), _qwen3(), _qwen_tokenizer(), z_image_transformer())
    if family == "qwen_image":
        return QwenImagePipeline(
            scheduler(use_dynamic_shifting=True), _qwen_vae(), _qwen_vl(), _qwen_tokenizer(), qwen_transformer()
        )
    clip_tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    clip = text_config(len(clip_tokenizer))
    if family.startswith("flux"):
        is_dev = family == "flux_dev"
        return FluxPipeline(
            scheduler(use_dynamic_shifting=is_dev), vae(), CLIPTextModel(clip), clip_tokenizer, _t5(WIDTH),
            _t5_tokenizer(), flux_transformer(is_dev),
        )  # fmt: skip
    has_t5 = family == "sd3"
    return StableDiffusion3Pipeline(
        sd3_transformer(), scheduler(shift=3.0), vae(), CLIPTextModelWithProjection(clip), clip_tokenizer,
        CLIPTextModelWithProjection(clip), clip_tokenizer,
        _t5(2 * WIDTH) if has_t5 else None, _t5_tokenizer() if has_t5 else None,
    )  # fmt: skip


def scheduler(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**options)


def z_image_transformer(**options: Any) -> ZImageTransformer2DModel:
    settings: dict[str, Any] = {
        "dim": WIDTH, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": WIDTH,
        "axes_dims": list(AXES), "axes_lens": [640, 64, 64],
    }  # fmt: skip
    model = ZImageTransformer2DModel(**settings | options).eval()
    for name in ("x_pad_token", "cap_pad_token"):
        torch.nn.init.normal_(getattr(model, name))
    return model


def sd3_transformer(**options: Any) -> SD3Transformer2DModel:
    settings: dict[str, Any] = {
        "sample_size": 8, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
        "joint_attention_dim": 2 * WIDTH, "caption_projection_dim": WIDTH, "pooled_projection_dim": 2 * WIDTH,
        "pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    }  # fmt: skip
    return SD3Transformer2DModel(**settings | options).eval()


def flux_transformer(guidance_embeds: bool, **options: Any) -> FluxTransformer2DModel:
    settings: dict[str, Any] = {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": sum(AXES), "num_attention_heads": 2,
        "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "axes_dims_rope": AXES,
    }  # fmt: skip
    return FluxTransformer2DModel(guidance_embeds=guidance_embeds, **settings | options).eval()


def qwen_transformer(**options: Any) -> QwenImageTransformer2DModel:
    settings: dict[str, Any] = {
        "num_layers": 1, "attention_head_dim": sum(AXES), "num_attention_heads": 2, "joint_attention_dim": WIDTH,
        "axes_dims_rope": AXES,
    }  # fmt: skip
    return QwenImageTransformer2DModel(**settings | options).eval()


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8, sample_size=64, latent_channels=16,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def _qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1).eval()


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=2 * WIDTH, num_layers=2, num_heads=4)
    ).eval()


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,.()"]
    return T5Tokenizer(vocab=pieces + letters, extra_ids=0, model_max_length=512)


def _text_model() -> dict[str, Any]:
    return {
        "vocab_size": 256 + len(MARKS), "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1200,
    }  # fmt: skip


def _qwen3() -> Qwen3Model:
    return Qwen3Model(Qwen3Config(**_text_model(), head_dim=8)).eval()


def _qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    vision = {"depth": 1, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_heads": 2, "out_hidden_size": WIDTH}
    config = Qwen2_5_VLConfig(text_config=_text_model() | {"rope_scaling": rope}, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """A token for each byte, and the marks of a chat."""
    words = [*MARKS, *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=1200)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    tokenizer.chat_template = CHAT
    return tokenizer
