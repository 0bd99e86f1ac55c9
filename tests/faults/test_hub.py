"""A hub that is interrupted, unreachable, that refuses, and a disk that is full: what the user is told."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from admin.download import download
from handlers.errors import ModelError
from handlers.installation import Installation
from handlers.pipelines.sources import ModelSource
from tests.support import hub

pytestmark = pytest.mark.faults


def test_a_connection_that_breaks_is_taken_up_again(served_model: hub.Hub, tmp_path: Path) -> None:
    weights = "unet/diffusion_pytorch_model.safetensors"
    served_model.cut[weights] = 100
    with pytest.raises(ModelError, match=r"was interrupted .* complete files are kept"):
        download(hub.MODEL, Installation(tmp_path, os.environ))
    complete = {name for name, _ in served_model.fetched if name.endswith(".safetensors")} - {weights}
    served_model.fetched.clear()
    served_model.cut[weights] = 1
    folder = download(hub.MODEL, Installation(tmp_path, os.environ))
    assert (folder / weights).read_bytes() == (served_model.models[hub.MODEL.location] / weights).read_bytes()
    assert complete and not complete & {name for name, _ in served_model.fetched}


def test_offline_the_cache_serves(served_model: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="not in the local cache, or only in part"):
        download(hub.MODEL, Installation(tmp_path, os.environ))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    online = download(hub.MODEL, Installation(tmp_path, os.environ))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(hub.MODEL, Installation(tmp_path, os.environ)) == online
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert download(hub.MODEL, Installation(tmp_path, os.environ)) == online


def test_a_token_from_its_file_opens_a_gated_model(served_model: hub.Hub, tmp_path: Path) -> None:
    served_model.token = "hf_right"
    with pytest.raises(ModelError, match=r"is gated: accept its licence .* token\.txt or HF_TOKEN"):
        download(hub.MODEL, Installation(tmp_path, os.environ))
    (tmp_path / "token.txt").write_text("hf_right\n")
    assert (download(hub.MODEL, Installation(tmp_path, os.environ)) / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("model", "refusal", "sentence"),
    [
        ("no/such", None, "has no model no/such"),
        ("a/secret", (401, "RepoNotFound"), "has no model a/secret, or your token gives no access"),
        ("a/gated", (403, "GatedRepo"), "is gated: accept its licence"),
        ("in/trouble", (500, ""), "not in the local cache"),
        ("a/b/c", None, "neither a folder on this machine nor a hub id"),
    ],
)
def test_what_the_hub_refuses_becomes_a_sentence(
    served_model: hub.Hub, tmp_path: Path, model: str, refusal: tuple[int, str] | None, sentence: str
) -> None:
    if refusal:
        served_model.refusals[model] = refusal
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
    served_model: hub.Hub, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(small_disk))
    with pytest.raises(ModelError, match="The disk is full, some/model does not fit: make room, or set HF_HOME"):
        download(hub.MODEL, Installation(tmp_path, os.environ))
