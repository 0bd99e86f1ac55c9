"""The merged call of eight mixed rows in the true shapes of each family, on tensors without numbers.

A module that would ask the host for a number fails on them, and so does one that is given tensors of two devices.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)

from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward, merge, split

pytestmark = pytest.mark.thorough
META = torch.device("meta")
BF16 = torch.bfloat16


def empty(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def z_image(module: Any, rows: int, number: int) -> DenoiserCall:
    size = (128, 128 - 8 * number)
    texts = [empty(20 + 100 * number + row, 2560) for row in range(rows)]
    latents = [empty(16, 1, *size) for _ in range(rows)]
    return DenoiserCall.of(module, (latents, torch.full((rows,), number / 4), texts), {"return_dict": False})


def sd3(module: Any, rows: int, number: int) -> DenoiserCall:
    named = {
        "hidden_states": empty(rows, 16, 128, 128), "encoder_hidden_states": empty(rows, 333, 4096),
        "pooled_projections": empty(rows, 2048), "timestep": torch.full((rows,), 250.0 * number),
        "joint_attention_kwargs": None, "return_dict": False,
    }  # fmt: skip
    return DenoiserCall.of(module, (), named)


def flux(module: Any, rows: int, number: int) -> DenoiserCall:
    named = {
        "hidden_states": empty(rows, 4096, 64), "timestep": torch.full((rows,), number / 4, dtype=BF16),
        "guidance": empty(rows, dtype=torch.float32), "pooled_projections": empty(rows, 768),
        "encoder_hidden_states": empty(rows, 512, 4096), "txt_ids": empty(512, 3), "img_ids": empty(4096, 3),
        "joint_attention_kwargs": {}, "return_dict": False,
    }  # fmt: skip
    return DenoiserCall.of(module, (), named)


def qwen_image(module: Any, rows: int, number: int) -> DenoiserCall:
    named = {
        "hidden_states": empty(rows, 4096, 64), "timestep": torch.full((rows,), number / 4, dtype=BF16),
        "guidance": None, "encoder_hidden_states_mask": None, "encoder_hidden_states": empty(rows, 40, 3584),
        "img_shapes": [[(1, 64, 64)]], "attention_kwargs": {}, "return_dict": False,
    }  # fmt: skip
    return DenoiserCall.of(module, (), named)


Large = dict[str, Any]
SD35_LARGE: Large = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
                     "pos_embed_max_size": 192}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "make"),
    [
        (ZImageTransformer2DModel, {}, z_image),
        (SD3Transformer2DModel, SD35_LARGE, sd3),
        (FluxTransformer2DModel, {"guidance_embeds": True}, flux),
        (QwenImageTransformer2DModel, {}, qwen_image),
    ],
)
def test_eight_rows_of_mixed_requests(kind: Any, config: Large, make: Callable[[Any, int, int], DenoiserCall]) -> None:
    with META:
        module = kind(**config).to(BF16).eval()
    # of guided and of unguided requests, as far as the family has both in one call
    rows = (2, 1, 2, 1, 2) if kind in (ZImageTransformer2DModel, SD3Transformer2DModel) else (1,) * 8
    calls = [make(module, count, number % 5) for number, count in enumerate(rows)]
    merged = merge(calls)
    assert merged.rows == 8 and merged.timestep.shape == (8,) and merged.timestep.device == META
    outputs = split(forward(merged), calls)
    for output, call in zip(outputs, calls, strict=True):
        assert [row.shape for row in output[0]] == [row.shape for row in call.sample]
