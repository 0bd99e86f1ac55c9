"""Which model is served, and hub models as huggingface_hub downloads them from a hub on loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin.download import download
from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.hub import check_files, variant_of
from handlers.pipelines.sources import HUB_DEFAULT, ModelSource, resolve_model
from tests.support import hub, tiny_models
from tests.support.paths import EMBEDDED, HOME

MODEL = ModelSource("some/model", "")


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


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    """A hub with a model, and a client's environment that knows no other hub, no cache and no token."""
    with hub.serving() as serving:
        serving.models[MODEL.location] = tiny_models.save("sd1", tmp_path / "model")
        tiny_models.save("sd1", tmp_path / "model", variant="fp16")
        tiny_models.save("sd1", tmp_path / "model", safe_serialization=False)
        (tmp_path / "model" / "README.md").write_text("a GPU that no pipeline needs")
        monkeypatch.setenv("HF_ENDPOINT", serving.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "SD_CONFIG"):
            monkeypatch.delenv(variable, raising=False)
        yield serving


def test_only_what_is_needed_is_downloaded_and_only_once(served: hub.Hub, tmp_path: Path) -> None:
    folder = download(MODEL, Installation(tmp_path, os.environ))
    names = {name for name, _ in served.fetched}
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"} <= names
    assert not {name for name in names if name.endswith((".bin", ".md")) or ".fp16." in name}
    assert (folder / "model_index.json").is_file()
    served.fetched.clear()
    download(MODEL, Installation(tmp_path, os.environ), half=True)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in {name for name, _ in served.fetched}
    served.fetched.clear()
    download(MODEL, Installation(tmp_path, os.environ))
    assert not [name for name, _ in served.fetched if name.endswith(".safetensors")]


def test_a_connection_that_breaks_is_taken_up_again(served: hub.Hub, tmp_path: Path) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    served.cut[weights] = 100
    with pytest.raises(ModelError, match=r"was interrupted .* complete files are kept"):
        download(MODEL, Installation(tmp_path, os.environ))
    complete = {name for name, _ in served.fetched if name.endswith(".safetensors")} - {weights}
    served.fetched.clear()
    served.cut[weights] = 1
    folder = download(MODEL, Installation(tmp_path, os.environ))
    assert (folder / weights).read_bytes() == (served.models[MODEL.location] / weights).read_bytes()
    assert complete and not complete & {name for name, _ in served.fetched}


def test_offline_the_cache_serves(served: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="not in the local cache, or only in part"):
        download(MODEL, Installation(tmp_path, os.environ))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    online = download(MODEL, Installation(tmp_path, os.environ))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(MODEL, Installation(tmp_path, os.environ)) == online
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert download(MODEL, Installation(tmp_path, os.environ)) == online


def test_a_token_from_its_file_opens_a_gated_model(served: hub.Hub, tmp_path: Path) -> None:
    served.token = "hf_right"
    with pytest.raises(ModelError, match=r"is gated: accept its licence .* token\.txt or HF_TOKEN"):
        download(MODEL, Installation(tmp_path, os.environ))
    (tmp_path / "token.txt").write_text("hf_right\n")
    assert (download(MODEL, Installation(tmp_path, os.environ)) / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("model", "refusal", "sentence"),
    [
        ("no/such", None, "has no model no/such"),
        ("a/secret", (401, "RepoNotFound"), "has no model a/secret, or your token gives no access"),
        ("a/gated", (403, "GatedRepo"), "is gated: accept its licence"),
        ("in/trouble", (500, ""), "not in the local cache"),
        ("a/b/c", None, "neither a folder here nor a hub id"),
    ],
)
def test_what_the_hub_refuses_becomes_a_sentence(
    served: hub.Hub, tmp_path: Path, model: str, refusal: tuple[int, str] | None, sentence: str
) -> None:
    if refusal:
        served.refusals[model] = refusal
    with pytest.raises(ModelError, match=sentence):
        download(ModelSource(model, ""), Installation(tmp_path, os.environ))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of half a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_a_sentence(
    served: hub.Hub, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(small_disk))
    with pytest.raises(ModelError, match="The disk is full, some/model does not fit: make room, or set HF_HOME"):
        download(MODEL, Installation(tmp_path, os.environ))


def test_a_local_model_is_not_downloaded() -> None:
    assert download(ModelSource(str(EMBEDDED), ""), Installation(HOME, {})) == EMBEDDED


def test_who_only_looks_for_a_model_does_without_torch() -> None:
    code = "import launch.serve, admin.reload, admin.placement, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HOME).returncode == 0
