import shutil
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from handlers import device
from handlers.errors import ModelError
from handlers.request import ModelDefaults
from handlers.weights import (
    HUB_DEFAULT,
    ModelSource,
    download,
    load_pipelines,
    model_defaults,
    project_home,
    read_token,
    resolve_model,
)
from tests.conftest import EMBEDDED, HOME, SIDE

CPU = torch.device("cpu")


def test_a_fresh_machine_gets_the_embedded_model() -> None:
    source = resolve_model("default", HOME, {})
    assert source.location == str(EMBEDDED) and source.is_local


def test_a_token_means_stable_diffusion(tmp_path: Path) -> None:
    assert resolve_model("default", tmp_path, {"HF_TOKEN": "hf_x"}).location == HUB_DEFAULT
    (tmp_path / "token.txt").write_text("hf_file\n")
    assert resolve_model("default", tmp_path, {}).location == HUB_DEFAULT
    assert read_token(tmp_path, {}) == "hf_file"
    assert read_token(tmp_path, {"HF_TOKEN": "hf_x"}) == "hf_x"


def test_sd_model_goes_before_a_token_and_the_option_before_both() -> None:
    environment = {"HF_TOKEN": "hf_x", "SD_MODEL": "some/model"}
    assert resolve_model("default", HOME, environment).location == "some/model"
    assert resolve_model("other/model", HOME, environment).location == "other/model"
    assert resolve_model(str(EMBEDDED), HOME, environment).location == str(EMBEDDED)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no model folder"):
        resolve_model(str(tmp_path / "nothing"), HOME, {})
    with pytest.raises(ModelError, match="has no model_index"):
        resolve_model(str(tmp_path), HOME, {})


def test_a_relative_folder_becomes_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HOME)
    assert resolve_model("models/embedded", HOME, {}).location == str(EMBEDDED)


def test_home_is_sd_home_or_as_recorded() -> None:
    assert project_home("/recorded", {"SD_HOME": "/told"}) == Path("/told")
    assert project_home("/recorded", {}) == Path("/recorded")


def test_the_models_own_defaults(pipelines: dict[str, Any], tmp_path: Path) -> None:
    own = model_defaults(ModelSource(str(EMBEDDED), ""), pipelines["txt2img"])
    assert own == ModelDefaults(20, 3.5, SIDE, SIDE, drawn_size=SIDE)
    silent = model_defaults(ModelSource(str(tmp_path), ""), pipelines["txt2img"])
    assert (silent.num_inference_steps, silent.guidance_scale) == (50, 7.5)


def test_the_three_pipelines_share_their_weights(pipelines: dict[str, Any]) -> None:
    assert len({id(pipeline.unet) for pipeline in pipelines.values()}) == 1
    assert {pipeline.unet.dtype for pipeline in pipelines.values()} == {torch.float32}


def test_a_damaged_model_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_pipelines(ModelSource(str(folder), ""), ["txt2img"], CPU, torch.float32, None)


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "knows no model"),
        (401, {"X-Error-Code": "RepoNotFound"}, "knows no model"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: accept its licence"),
        (500, {}, "not in the local cache and the hub cannot be reached|refused to send"),
    ],
)
def test_what_the_hub_answers_becomes_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, headers: dict[str, str], sentence: str
) -> None:
    """A local server in the hub's place, asked by huggingface_hub itself."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    hub = HTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=hub.serve_forever, daemon=True).start()
    try:
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelError, match=sentence):
            download(ModelSource("some/model", ""), tmp_path, {})
    finally:
        hub.shutdown()
        hub.server_close()


def test_an_unreachable_hub_and_a_bad_id_are_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="hub cannot be reached"):
        download(ModelSource("some/model", ""), tmp_path, {})
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        download(ModelSource("a/b/c", ""), tmp_path, {})


def test_a_local_model_is_not_downloaded() -> None:
    download(ModelSource(str(EMBEDDED), ""), HOME, {})


@pytest.mark.parametrize(
    ("wanted", "cuda", "mps", "expected"),
    [
        ("auto", True, False, "cuda:1"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda:0", True, False, "cuda:0"),
    ],
)
def test_device(monkeypatch: pytest.MonkeyPatch, wanted: str, cuda: bool, mps: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(device.choose_device(wanted, 1)) == expected


@pytest.mark.parametrize(
    ("wanted", "sentence"), [("cuda", "no NVIDIA card"), ("mps", "has none"), ("tpu9", "not known")]
)
def test_a_device_that_is_not_there_is_a_sentence(wanted: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        device.choose_device(wanted, None)


def test_dtype() -> None:
    assert device.choose_dtype("auto", CPU) == torch.float32
    assert device.choose_dtype("auto", torch.device("cuda")) == torch.float16
    assert device.choose_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(ModelError, match="is not known"):
        device.choose_dtype("float8", CPU)
