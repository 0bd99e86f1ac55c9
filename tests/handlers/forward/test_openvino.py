"""The UNet in OpenVINO: the same images but for the last digits, with every form of call."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.errors import ModelError
from handlers.forward.calls import UNetCall
from handlers.forward.merging import forward
from handlers.forward.openvino import OpenVINOForward
from tests.support import tiny_models
from tests.support.frontend import Context, Frontend
from tests.support.jobs import a_request, generated_alone, generated_together, load
from tests.support.paths import HOME


def call(unet: Any, rows: int, size: tuple[int, int], **kwargs: Any) -> UNetCall:
    states = torch.randn(rows, 77, tiny_models.WIDTH)
    return UNetCall(unet, torch.randn(rows, 4, *size), torch.tensor(500), {"encoder_hidden_states": states} | kwargs)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return tiny_models.unet()


@pytest.fixture
def run() -> OpenVINOForward:
    return OpenVINOForward(threads=2)


@pytest.fixture
def compiled(run: OpenVINOForward, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that OpenVINO has compiled."""
    import openvino  # which `run` has kept from sending reports

    models: list[Any] = []
    compile_model = openvino.compile_model

    def kept(*arguments: Any) -> Any:
        models.append(compile_model(*arguments))
        return models[-1]

    monkeypatch.setattr(openvino, "compile_model", kept)
    return models


def test_one_conversion_is_for_all_sizes(unet: Any, run: OpenVINOForward, compiled: list[Any]) -> None:
    kept = run(call(unet, 1, (8, 8))).sample
    before = kept.clone()
    for rows, size in ((2, (8, 8)), (5, (16, 8))):
        one = call(unet, rows, size)
        assert run(one).sample.numpy() == pytest.approx(forward(one).sample.numpy(), abs=1e-3)
    assert (kept == before).all()
    (model,) = compiled
    assert not model.get_property("ENABLE_CPU_PINNING")  # several workers would pin theirs to the same cores
    as_tuple = call(unet, 2, (8, 8), return_dict=False)
    assert run(as_tuple)[0].numpy() == pytest.approx(forward(as_tuple)[0].numpy(), abs=1e-3)


def test_what_a_conversion_would_fix_runs_in_torch(unet: Any, run: OpenVINOForward) -> None:
    odd = call(unet, 2, (9, 8))
    opaque = call(unet, 2, (8, 8), cross_attention_kwargs={"scale": object()})
    for one in (odd, call(unet, 2, (8, 8), attention_mask=None, return_dict=True), odd):
        assert run(one).sample.shape == one.sample.shape
    assert (run(odd).sample == forward(odd).sample).all()
    assert (run(opaque).sample == forward(opaque).sample).all()


def test_a_unet_that_cannot_be_converted_runs_in_torch(run: OpenVINOForward, caplog: pytest.LogCaptureFixture) -> None:
    class Strange(torch.nn.Module):
        num_upsamplers = 1

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (torch.special.bessel_j0(sample),)  # which OpenVINO does not know

    strange = Strange()
    for _ in range(2):
        one = UNetCall(strange, torch.ones(2, 4, 8, 8), torch.tensor(1), {"return_dict": False})
        assert (run(one)[0] == forward(one)[0]).all()
    assert caplog.text.count("it runs in torch") == 1


@pytest.mark.parametrize("family", ["sd1", "sdxl", "lcm"])
def test_images_are_the_same(
    family: str, tmp_path: Path, run: OpenVINOForward, compiled: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    pipelines = load(tiny_models.save(family, tmp_path))
    requests = [a_request(task, "a red apple", 1, 5, 7.5) for task in ("txt2img", "img2img", "masking")]
    together, _ = generated_together(pipelines, requests, run)
    assert compiled and "it runs in torch" not in caplog.text
    for image, request in zip(together, requests, strict=True):
        alone = np.asarray(generated_alone(pipelines, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2


def test_a_worker_generates_with_it() -> None:
    from handlers.txt2img import Txt2ImgHandler

    handler = Txt2ImgHandler()
    handler.initialize(Context(openvino=True))
    frontend = Frontend(handler)
    names = [frontend.send(seed=7, num_inference_steps=2) for _ in range(2)]
    frontend.run()
    first, second = (frontend.result(name)["images"][0] for name in names)
    assert first["seed"] == second["seed"] == 7


@pytest.mark.parametrize(("config", "why"), [({"dtype": "bfloat16"}, "for a CPU in float32")])
def test_what_it_cannot_do_is_said_at_the_start(config: dict[str, Any], why: str) -> None:
    from handlers.txt2img import Txt2ImgHandler

    with pytest.raises(RuntimeError, match=why):
        Txt2ImgHandler().initialize(Context(openvino=True, **config))


def test_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match="pip install openvino"):
        OpenVINOForward(threads=2)


def test_it_reports_its_use_to_nobody() -> None:
    code = (
        "import sys, threading; from handlers.forward.openvino import OpenVINOForward; OpenVINOForward(1);"
        "import openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"
