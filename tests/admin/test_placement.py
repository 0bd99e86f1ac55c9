"""Three archives, one, or low-memory mode: by what an accelerator has free."""

from pathlib import Path

import pytest

from admin.placement import GIB, choose_placement, weight_bytes
from admin.probe import Device
from handlers.errors import ModelError
from tests.support import tiny_models
from tests.support.original_layout import count, save_single_file


@pytest.mark.parametrize(
    ("free", "archives", "low_memory"),
    [(24, "three", False), (8, "combined", False), (4, "combined", True), (None, "three", False)],
)
def test_what_fits_is_chosen(free: int | None, archives: str, low_memory: bool) -> None:
    chosen = choose_placement(Device("cuda" if free else "cpu", "float16", free and free * GIB), 2 * GIB)
    assert (chosen.archives, chosen.low_memory) == (archives, low_memory)
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
