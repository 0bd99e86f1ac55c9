"""OpenVINO on a CPU: the same images but for the last digits, with every form of call, converted once."""

import copy
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

from handlers.errors import ModelError
from handlers.forward.calls import DenoiserCall
from handlers.forward.conversions import KEPT, Converter, pays
from handlers.forward.merging import forward
from handlers.forward.openvino import OpenVINOForward, convert_checker, convert_vae
from handlers.forward.weights import Weights
from handlers.stable_diffusion import CombinedHandler
from tests.support import tiny_models
from tests.support.frontend import Context, Frontend
from tests.support.jobs import a_request, generated_alone, generated_together, load
from tests.support.paths import EMBEDDED
from tests.support.samples import b64, decode, sample_image


def call(unet: Any, rows: int, size: tuple[int, int], **kwargs: Any) -> DenoiserCall:
    states = torch.randn(rows, 77, tiny_models.WIDTH)
    given = {"encoder_hidden_states": states} | kwargs
    return DenoiserCall.of(unet, (torch.randn(rows, 4, *size), torch.tensor(500)), given)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return tiny_models.unet()


@pytest.fixture
def converter(tmp_path: Path) -> Converter:
    return Converter(threads=2, dtype="float32", folder=tmp_path / "conversions")


@pytest.fixture
def run(converter: Converter) -> OpenVINOForward:
    return OpenVINOForward(converter)


@pytest.fixture
def compiled(run: OpenVINOForward, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that OpenVINO has compiled."""
    import openvino  # which `run` has kept from sending reports

    models: list[Any] = []
    compile_model = openvino.Core.compile_model

    def kept(*arguments: Any) -> Any:
        models.append(compile_model(*arguments))
        return models[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", kept)
    return models


def test_one_conversion_is_for_all_sizes(unet: Any, run: OpenVINOForward, compiled: list[Any]) -> None:
    kept = run(call(unet, 1, (8, 8)))[0]
    before = kept.clone()
    for rows, size in ((2, (8, 8)), (5, (16, 8)), (2, (9, 8)), (1, (7, 13))):
        one = call(unet, rows, size)
        assert run(one)[0].numpy() == pytest.approx(forward(one)[0].numpy(), abs=1e-3)
    assert (kept == before).all()
    (model,) = compiled
    assert not model.get_property("ENABLE_CPU_PINNING")  # several workers would pin theirs to the same cores


def test_what_a_conversion_would_fix_runs_in_torch(unet: Any, run: OpenVINOForward) -> None:
    opaque = call(unet, 2, (8, 8), cross_attention_kwargs={"scale": object()})
    assert (run(opaque)[0] == forward(opaque)[0]).all()


def test_a_unet_that_cannot_be_converted_runs_in_torch(run: OpenVINOForward, caplog: pytest.LogCaptureFixture) -> None:
    class Strange(torch.nn.Module):
        num_upsamplers = 1

        def forward(self, sample: torch.Tensor, timestep: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            return (torch.special.bessel_j0(sample),)  # which OpenVINO does not know

    strange = Strange()
    for _ in range(2):
        one = DenoiserCall(strange, torch.ones(2, 4, 8, 8), torch.tensor(1), {"return_dict": False})
        assert (run(one)[0] == forward(one)[0]).all()
    assert caplog.text.count("it runs in torch") == 1


@pytest.mark.parametrize("family", ["sd1", "sdxl", "lcm"])
def test_images_are_the_same(
    family: str, tmp_path: Path, run: OpenVINOForward, compiled: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    pipelines = load(tiny_models.save(family, tmp_path))
    requests = [a_request(task, "a red apple", 1, 5, 7.5) for task in ("txt2img", "img2img", "masking")]
    requests.append(a_request("txt2img", "apple " * 90, 1, 5, 7.5))  # of two chunks
    together, _ = generated_together(pipelines, requests, run)
    assert compiled and "it runs in torch" not in caplog.text
    for image, request in zip(together, requests, strict=True):
        alone = np.asarray(generated_alone(pipelines, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2


def test_a_vae_codes_both_ways_as_torch_does(converter: Converter, compiled: list[Any]) -> None:
    vae = tiny_models.make("sd1").vae
    images = [torch.rand(rows, 3, 64, width) * 2 - 1 for rows, width in ((1, 64), (3, 96))]
    with torch.no_grad():
        expected = [(vae.encode(image).latent_dist.mean, vae.decode(vae.encode(image).latent_dist.mean).sample)
                    for image in images]  # fmt: skip
        convert_vae(vae, converter)
        for image, (latents, decoded) in zip(images, expected, strict=True):
            assert vae.encode(image).latent_dist.mean.numpy() == pytest.approx(latents.numpy(), abs=1e-3)
            assert vae.decode(latents).sample.numpy() == pytest.approx(decoded.numpy(), abs=1e-3)
    assert len(compiled) == 2


def test_a_checker_sees_what_it_sees_in_torch(converter: Converter, compiled: list[Any]) -> None:
    folder = EMBEDDED / "safety_checker"
    checker, again = (StableDiffusionSafetyChecker.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    seen = again.vision_model(images)[1]
    checker.concept_embeds.data[0] = again.visual_projection(seen)[1].detach()  # so it flags the second
    checker.concept_embeds_weights.data[0] = 0.999
    convert_checker(checker, converter, lambda: again)
    assert checker.vision_model(images)[1].numpy() == pytest.approx(seen.detach().numpy(), abs=1e-3)
    assert checker(clip_input=images, images=[np.ones((8, 8, 3)) for _ in images])[1] == [False, True, False]
    assert len(compiled) == 1 and in_memory(checker.vision_model) < in_memory(again.vision_model) / 50


def in_memory(module: torch.nn.Module) -> int:
    """The bytes of the module's weights."""
    storages = {tensor.untyped_storage() for tensor in module.state_dict().values()}
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_weights_are_in_memory_once(converter: Converter) -> None:
    unet = tiny_models.make("sd1").unet
    full, one = in_memory(unet), call(unet, 2, (8, 8))
    expected, again, times = forward(one)[0], copy.deepcopy(unet), []
    run = OpenVINOForward(converter, [Weights(unet, lambda: times.append(1) or again)])
    assert run(one)[0].numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    assert in_memory(unet) < full / 100 and not times
    # the conversion of another call reads them once more
    other = call(unet, 2, (8, 8), encoder_attention_mask=torch.ones(2, 77))
    assert run(other)[0].numpy() == pytest.approx(expected_of(again, other).numpy(), abs=1e-3)
    assert in_memory(unet) < full / 100 and len(times) == 1
    # torch needs them, and keeps them from then on
    opaque = call(unet, 2, (8, 8), cross_attention_kwargs={"scale": object()})
    assert (run(opaque)[0] == expected_of(again, opaque)).all()
    assert run(call(unet, 2, (8, 8), timestep_cond=None))[0] is not None
    assert in_memory(unet) == full and len(times) == 2


def expected_of(unet: Any, one: DenoiserCall) -> torch.Tensor:
    sample: torch.Tensor = forward(replace(one, module=unet))[0]
    return sample


def a_layer(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(64, 64)


def test_the_next_start_takes_the_conversion_from_the_disk(
    converter: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    layer, values = a_layer(), torch.randn(2, 64)
    first = converter.compile(layer, Weights(layer), "", [values])
    monkeypatch.setattr(openvino, "convert_model", None)
    other = Converter(threads=2, dtype="float32", folder=tmp_path / "conversions")
    again = other.compile(layer, Weights(layer), "", [values])
    assert (first([values.numpy()])[0] == again([values.numpy()])[0]).all()


def test_callers_that_write_their_calls_in_other_ways_share_a_conversion(
    unet: Any, run: OpenVINOForward, compiled: list[Any]
) -> None:
    one = call(unet, 2, (8, 8))
    expected = forward(one)[0].numpy()
    timesteps = torch.tensor([500.0, 500.0], dtype=torch.float64)
    written = {"timestep": timesteps, "timestep_cond": None, "return_dict": True, **one.kwargs}
    for other in (one, replace(one, timestep=timesteps), DenoiserCall.of(unet, (one.sample,), written)):
        assert run(other)[0].numpy() == pytest.approx(expected, abs=1e-3)
    assert len(compiled) == 1


def test_another_model_is_another_conversion_and_the_oldest_are_removed(converter: Converter, tmp_path: Path) -> None:
    values = torch.randn(1, 64)
    for seed in range(KEPT + 2):
        layer = a_layer(seed)
        run = converter.compile(layer, Weights(layer), "", [values])
        assert run([values.numpy()])[0] == pytest.approx(layer(values).detach().numpy(), abs=1e-4)
    assert len(list((tmp_path / "conversions").iterdir())) == KEPT


def test_a_half_of_the_room_is_enough_for_weights_of_16_bits(tmp_path: Path) -> None:
    sizes = []
    for layer in (a_layer(), a_layer().half().float()):
        folder = tmp_path / str(len(sizes))
        Converter(2, "float32", folder).compile(layer, Weights(layer), "", [torch.randn(1, 64)])
        sizes.append(next(folder.glob("*/model.bin")).stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]


def test_without_room_for_it_a_conversion_is_used_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    layer, values = a_layer(), torch.randn(1, 64)
    run = Converter(2, "float32", tmp_path / "file").compile(layer, Weights(layer), "", [values])
    assert run([values.numpy()])[0] == pytest.approx(layer(values).detach().numpy(), abs=1e-4)
    assert "is not kept" in caplog.text


def test_a_worker_generates_with_it(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SD_CACHE_DIR", str(tmp_path))
    images = {}
    for engine in ("torch", "openvino"):
        handler = CombinedHandler()
        handler.initialize(Context(model=str(tiny_model), engine=engine, dtype="float32"))
        (described,) = handler.worker.describe(0)["models"]
        assert (described["engine"], described["dtype"]) == (engine, "float32")
        parts = handler.worker.served["txt2img"].pipeline
        assert all((in_memory(each) < 1_000) == (engine == "openvino") for each in (parts.unet, parts.vae.decoder))
        frontend = Frontend(handler)
        init = {"init_image": b64(sample_image()), "seed": 7, "num_inference_steps": 3}
        names = [frontend.send(**init), frontend.send("img2img", **init)]
        frontend.run()
        images[engine] = [decode(frontend.result(name)["images"][0]) for name in names]
    for one, other in zip(images["torch"], images["openvino"], strict=True):
        assert np.abs(one - other).max() <= 2


def test_the_dtype_is_what_the_processor_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    for capabilities, dtype in ((["FP32", "BF16"], "bfloat16"), (["FP32"], "float32")):
        monkeypatch.setattr(openvino.Core, "get_property", lambda *_, has=capabilities: has)
        assert Converter(1, "auto", tmp_path).dtype == dtype
        assert Converter(1, "float32", tmp_path).dtype == "float32"
    with pytest.raises(ModelError, match="does not compute in bfloat16 here"):
        Converter(1, "bfloat16", tmp_path)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    layer, values = a_layer(), torch.randn(1, 64)
    expected = layer(values).detach().numpy()
    try:
        converter = Converter(2, "bfloat16", tmp_path)
    except ModelError as error:
        pytest.skip(str(error))
    computed = converter.compile(layer, Weights(layer), "", [values])([values.numpy()])[0]
    assert np.linalg.norm(computed - expected) < 0.05 * np.linalg.norm(expected)


def test_what_a_killed_worker_left_is_removed(converter: Converter, tmp_path: Path) -> None:
    left, recent = (tmp_path / "conversions" / name for name in ("new-left", "new-recent"))
    for folder in (left, recent):
        folder.mkdir(parents=True)
    os.utime(left, (0, 0))
    layer = a_layer()
    converter.compile(layer, Weights(layer), "", [torch.randn(1, 64)])
    assert recent.exists() and not left.exists()


def test_it_is_not_for_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, expected in (("AMD64", True), ("x86_64", True), ("arm64", False)):
        monkeypatch.setattr("platform.machine", lambda name=machine: name)
        assert pays() is expected
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not pays()


def test_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModelError, match="needs the package openvino"):
        Converter(2, "auto", tmp_path)
