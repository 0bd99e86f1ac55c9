"""Which model is served, and a hub model as huggingface_hub downloads it from a hub on loopback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import AutoencoderTiny, AutoModel

from admin.download import download
from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.hub import check_files, variant_of
from handlers.pipelines.sources import HUB_DEFAULT, ModelSource, resolve_model
from tests.support import hub
from tests.support.paths import EMBEDDED, HOME


def test_a_fresh_machine_gets_the_embedded_model() -> None:
    source = resolve_model("default", Installation(HOME, {}))
    assert source.location == str(EMBEDDED) and source.is_local


def test_a_token_means_stable_diffusion(tmp_path: Path) -> None:
    assert resolve_model("default", Installation(tmp_path, {"HF_TOKEN": "hf_x"})).location == HUB_DEFAULT
    (tmp_path / "token.txt").write_text("hf_file\n")
    assert resolve_model("default", Installation(tmp_path, {})).location == HUB_DEFAULT
    assert Installation(tmp_path, {}).token() == "hf_file"
    assert Installation(tmp_path, {"HF_TOKEN": "hf_x"}).token() == "hf_x"
    (tmp_path / "token.txt").unlink()
    (tmp_path / "config.json").write_text('{"hf_token": "hf_config"}')
    assert Installation(tmp_path, {}).token() == "hf_config"


def test_sd_model_goes_before_a_token_and_the_option_before_both() -> None:
    environment = {"HF_TOKEN": "hf_x", "SD_MODEL": "some/model"}
    assert resolve_model("default", Installation(HOME, environment)).location == "some/model"
    assert resolve_model("other/model", Installation(HOME, environment)).location == "other/model"
    assert resolve_model(str(EMBEDDED), Installation(HOME, environment)).location == str(EMBEDDED)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nothing"), "./nothing", "nothing.safetensors"):
        with pytest.raises(ModelError, match="There is no model at"):
            resolve_model(name, Installation(HOME, {}))
    with pytest.raises(ModelError, match="has no model_index"):
        resolve_model(str(tmp_path), Installation(HOME, {}))
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(ModelError, match="is not a model"):
        resolve_model(str(tmp_path / "notes.txt"), Installation(HOME, {}))


def test_a_relative_folder_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOME)
    assert resolve_model("models/embedded", Installation(HOME, {})).location == str(EMBEDDED)


def test_a_single_file_is_known_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"")
    source = resolve_model(str(file), Installation(HOME, {}))
    assert source.is_local and source.name == "mine.safetensors"


@pytest.mark.parametrize(
    ("names", "half", "expected"),
    [
        (["model.safetensors"], True, None),
        (["model.safetensors", "model.fp16.safetensors"], True, "fp16"),
        (["model.safetensors", "model.fp16.safetensors"], False, None),
        (["model.fp16.safetensors"], False, "fp16"),
        (["model.safetensors", "model.non_ema.safetensors"], True, None),
        (["model-00001-of-00002.safetensors"], True, None),
    ],
)
def test_variant(names: list[str], half: bool, expected: str | None) -> None:
    files = [f"unet/diffusion_pytorch_{name}" for name in names]
    assert variant_of([*files, "vae/diffusion_pytorch_model.safetensors", "model_index.json"], half) == expected


def test_what_is_no_diffusers_model_is_a_sentence() -> None:
    with pytest.raises(ModelError, match="not a diffusion model"):
        check_files("x/y", ["config.json"], False)
    with pytest.raises(ModelError, match=r"download its mine\.safetensors and give --model the file's path"):
        check_files("x/y", ["mine.safetensors"], False)
    pickled = ["model_index.json", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ModelError, match="--allow-pickle"):
        check_files("x/y", pickled, False)
    check_files("x/y", pickled, True)


@pytest.mark.thorough
def test_only_what_is_needed_is_downloaded_and_only_once(served_model: hub.Hub, tmp_path: Path) -> None:
    folder = download(hub.MODEL, Installation(tmp_path, os.environ))
    names = {name for name, _ in served_model.fetched}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= names
    assert not {name for name in names if name.endswith((".bin", ".md")) or ".fp16." in name}
    assert (folder / "model_index.json").is_file()
    served_model.fetched.clear()
    download(hub.MODEL, Installation(tmp_path, os.environ), half=True)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in {name for name, _ in served_model.fetched}
    served_model.fetched.clear()
    download(hub.MODEL, Installation(tmp_path, os.environ))
    assert not [name for name, _ in served_model.fetched if name.endswith(".safetensors")]


def test_a_vae_is_downloaded_by_itself(served_model: hub.Hub, tmp_path: Path) -> None:
    AutoencoderTiny().save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    served_model.models["some/vae"] = tmp_path / "vae"
    folder = download(ModelSource("some/vae", ""), Installation(tmp_path, os.environ), is_vae=True)
    assert {name for name, _ in served_model.fetched} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert type(AutoModel.from_pretrained(str(folder))).__name__ == "AutoencoderTiny"
    with pytest.raises(ModelError, match="The hub has no model no/vae"):
        download(ModelSource("no/vae", ""), Installation(tmp_path, os.environ), is_vae=True)


def test_a_local_model_is_not_downloaded() -> None:
    assert download(ModelSource(str(EMBEDDED), ""), Installation(HOME, {})) == EMBEDDED


def test_a_program_that_only_looks_for_a_model_does_without_torch() -> None:
    code = "import launch.serve, admin.reload, admin.placement, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HOME).returncode == 0
