"""Text encoders in 8 bits: which layers, what is left of an image, and their room in low-memory mode."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.errors import ModelError
from handlers.pipelines.float8 import store_in_float8
from handlers.pipelines.low_memory import offload
from tests.support import tiny_transformers
from tests.support.jobs import a_request, generated_alone, generated_together, load

CPU = torch.device("cpu")
REQUEST = a_request("txt2img", "a red house", 3, 3, 4.0)


def bytes_of(module: Any) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in module.parameters())


@pytest.mark.parametrize("family", ["z_image", "sd3", "flux_dev", "qwen_image"])
def test_language_models_take_less_memory_and_read_nearly_the_same(family: str, tmp_path: Path) -> None:
    folder = tiny_transformers.save(family, tmp_path)
    plain, narrow = load(folder, "txt2img"), load(folder, "txt2img", float8_text_encoders=True)
    sizes = {
        name: bytes_of(module) / bytes_of(plain["txt2img"].components[name])
        for name, module in narrow["txt2img"].components.items()
        if isinstance(module, torch.nn.Module)
    }
    models = {name for name, share in sizes.items() if share < 0.7}
    assert models == {{"sd3": "text_encoder_3", "flux_dev": "text_encoder_2"}.get(family, "text_encoder")}
    assert all(share == 1 for name, share in sizes.items() if name not in models)

    image, expected = (np.asarray(generated_alone(one, REQUEST), dtype=int) for one in (narrow, plain))
    assert np.abs(image - expected).max() > 0 and np.abs(image - expected).mean() < 8
    together, _ = generated_together(narrow, [REQUEST])
    assert np.array_equal(np.asarray(together[0]), image)


def test_they_come_and_go_in_low_memory_mode(tmp_path: Path) -> None:
    folder = tiny_transformers.save("flux_dev", tmp_path)
    pipelines = load(folder, "txt2img", float8_text_encoders=True)
    expected = np.asarray(generated_alone(pipelines, REQUEST))
    slot = offload(pipelines["txt2img"], CPU)
    for _ in range(2):
        assert np.array_equal(np.asarray(generated_alone(pipelines, REQUEST)), expected)
    slot.empty()
    linear = pipelines["txt2img"].text_encoder_2.encoder.block[0].layer[0].SelfAttention.q
    assert linear.weight.dtype == torch.float8_e4m3fn


def test_where_clip_reads_the_prompts_the_log_says_that_it_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    pipeline = tiny_transformers.make("sd3_without_t5")
    store_in_float8(pipeline, CPU)
    assert pipeline.text_encoder.text_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.float32
    assert "has no effect on this model" in caplog.text


def test_a_macs_gpu_has_no_float8(tmp_path: Path) -> None:
    pipeline = tiny_transformers.make("sd3")
    with pytest.raises(ModelError, match="Leave it out"):
        store_in_float8(pipeline, torch.device("mps"))
