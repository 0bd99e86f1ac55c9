"""With all of its weights on an accelerator, or in low-memory mode: by what is free there."""

from pathlib import Path

import pytest

from admin.placement import FLOAT8_SHARE, GIB, choose_placement, weight_bytes
from admin.probe import Device
from handlers.errors import ModelError
from tests.support import tiny_models, tiny_transformers
from tests.support.original_layout import count, save_single_file


@pytest.mark.parametrize(
    ("free", "low_memory"),
    [(24, False), (8, False), (4, True), (None, False)],
)
def test_what_fits_is_chosen(free: int | None, low_memory: bool) -> None:
    chosen = choose_placement(Device("cuda" if free else "cpu", "float16", free and free * GIB), 2 * GIB)
    assert chosen.low_memory == low_memory
    assert (f"{free}.0 GiB are free on the cuda device" in chosen.reason) == bool(free)


def test_weights_are_counted_once_whatever_is_beside_them(tmp_path: Path) -> None:
    pipeline = tiny_models.make("sd1")
    numbers = sum(count(pipeline.components[part]) for part in ("unet", "vae", "text_encoder"))
    folder = tiny_models.save("sd1", tmp_path / "model")
    assert weight_bytes(folder, "float32") == 4 * numbers
    tiny_models.save("sd1", folder, variant="fp16")
    tiny_models.save("sd1", folder, safe_serialization=False)
    assert weight_bytes(folder, "float32") == 4 * numbers
    assert weight_bytes(folder, "float16") == 2 * numbers
    text_encoder = folder / "text_encoder"
    (text_encoder / "pytorch_model.bin").write_bytes(bytes(1000))  # what the hub has beside model.safetensors
    assert weight_bytes(folder, "float32") == 4 * numbers
    weights = text_encoder / "model.fp16.safetensors"
    weights.rename(text_encoder / "model.fp16-00001-of-00001.safetensors")
    assert weight_bytes(folder, "float16") == 2 * numbers
    save_single_file(pipeline, tmp_path / "one.safetensors")
    assert weight_bytes(tmp_path / "one.safetensors", "float16") == 2 * numbers


def test_a_pointer_of_git_lfs_is_a_sentence(tmp_path: Path) -> None:
    folder = tiny_models.save("sd1", tmp_path / "model")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="git lfs pull"):
        weight_bytes(folder, "float16")


def test_language_models_in_8_bits_count_as_that_and_clip_does_not(tmp_path: Path) -> None:
    pipeline = tiny_transformers.make("flux_dev")
    folder = tiny_transformers.save("flux_dev", tmp_path / "flux")
    saved = 2 * count(pipeline.text_encoder_2) * (1 - FLOAT8_SHARE)
    assert weight_bytes(folder, "bfloat16", True) == pytest.approx(weight_bytes(folder, "bfloat16") - saved, rel=0.02)
    clip = tiny_models.save("sd1", tmp_path / "clip")
    assert weight_bytes(clip, "float16", True) == weight_bytes(clip, "float16")
