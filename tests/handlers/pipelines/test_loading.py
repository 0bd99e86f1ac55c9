"""Models of every family and format, each served as diffusers itself generates it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image
from safetensors.torch import save_file

from handlers.engine.pipeline_job import PipelineJob
from handlers.errors import ModelError
from handlers.forward.merging import forward
from handlers.pipelines.defaults import model_defaults
from handlers.pipelines.loading import _check_family
from handlers.pipelines.noise import generator
from handlers.pipelines.schedulers import options, scheduler, schedulers
from handlers.pipelines.sources import loras
from handlers.request.samplers import find_sampler
from handlers.wire import TASKS
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_alone, generated_together, load
from tests.support.paths import EMBEDDED


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, tiny_models.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("family", [f for f in tiny_models.FAMILIES if f != "inpainting"], indirect=True)
def test_jobs_of_a_family_merge_and_generate_as_they_do_alone(family: tuple[str, Path]) -> None:
    pipelines = load(family[1])
    defaults = model_defaults(family[1], pipelines["txt2img"])
    requests = [
        a_request("txt2img", "a red apple", 1, 4, defaults.guidance_scale),
        a_request("txt2img", "a much longer prompt on a blue background", 2, 6, defaults.guidance_scale),
        a_request("img2img", "a house", 3, 5, defaults.guidance_scale),
        a_request("masking", "a cat", 4, 5, defaults.guidance_scale),
    ]
    together, merged = generated_together(pipelines, requests)
    assert merged >= 3
    for image, request in zip(together, requests, strict=True):
        alone = np.asarray(generated_alone(pipelines, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2, request.task


@pytest.mark.parametrize("family", ["inpainting"], indirect=True)
def test_an_inpainting_unet_serves_masking_alone(family: tuple[str, Path]) -> None:
    pipelines = load(family[1], "masking")
    requests = [a_request("masking", "a cat", seed, 4, 7.5) for seed in (1, 2)]
    together, merged = generated_together(pipelines, requests)
    assert merged >= 3
    alone = np.asarray(generated_alone(pipelines, requests[0]), dtype=int)
    assert np.abs(np.asarray(together[0], dtype=int) - alone).max() <= 2
    with pytest.raises(ModelError, match="inpainting model, which can serve masking alone"):
        load(family[1], "txt2img")


def test_the_three_pipelines_share_their_weights(pipelines: dict[str, Any]) -> None:
    assert len({id(pipeline.unet) for pipeline in pipelines.values()}) == 1
    assert {pipeline.unet.dtype for pipeline in pipelines.values()} == {torch.float32}


def test_fp16_weights_are_taken_where_they_fit_what_is_served(tmp_path: Path) -> None:
    tiny_models.save("sd1", tmp_path, variant="fp16")
    only_half = load(tmp_path, "txt2img")["txt2img"]
    assert only_half.unet.dtype == torch.float32
    tiny_models.save("sd1", tmp_path)
    for dtype, broken in ((torch.float32, "model.fp16.safetensors"), (torch.float16, "model.safetensors")):
        folder = tmp_path.with_name(f"{tmp_path.name}-{dtype}")
        shutil.copytree(tmp_path, folder)
        for file in folder.rglob(f"*{broken}"):
            file.write_bytes(b"never read")
        assert load(folder, "txt2img", dtype=dtype)["txt2img"].unet.dtype == dtype


def test_pickled_weights_only_when_asked_for(tmp_path: Path) -> None:
    tiny_models.save("sd1", tmp_path, safe_serialization=False)
    with pytest.raises(ModelError, match="pickled files, which can run any program"):
        load(tmp_path, "txt2img")
    assert load(tmp_path, "txt2img", allow_pickle=True)["txt2img"].unet.dtype == torch.float32


def test_a_damaged_model_is_a_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder, "txt2img")


def test_the_safety_checker_can_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pipelines = load(EMBEDDED, "txt2img", safety_checker=False)
    assert pipelines["txt2img"].safety_checker is None
    assert "has no safety checker: every answer says nsfw=false" in caplog.text


@pytest.mark.parametrize(("family", "layout"), [("sd1", "diffusers"), ("sd1", "kohya"), ("sdxl", "diffusers")])
def test_a_lora_is_in_the_weights(family: str, layout: str, tmp_path: Path) -> None:
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    base = tiny_models.save(family, tmp_path / "base")
    trained = AutoPipelineForText2Image.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    trained.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    with torch.no_grad():
        for name, parameter in trained.unet.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.2)
    state = get_peft_model_state_dict(trained.unet)
    file = tmp_path / "style.safetensors"
    if layout == "kohya":  # the layout of the usual training scripts
        save_file({_kohya_name(name): tensor.clone() for name, tensor in state.items()}, file)
    else:
        trained.save_lora_weights(tmp_path, unet_lora_layers=state, weight_name=file.name)
    torch.manual_seed(1)
    sample, states = torch.randn(2, 4, 8, 8), torch.randn(2, 77, trained.unet.config.cross_attention_dim)
    added = {"text_embeds": torch.randn(2, tiny_models.WIDTH), "time_ids": torch.ones(2, 6)}

    def predicted(unet: Any) -> torch.Tensor:
        with torch.no_grad():
            return unet(sample, 500, states, added_cond_kwargs=added).sample

    plain, full, half = (
        predicted(load(base, "txt2img", lora=lora)["txt2img"].unet) for lora in ("", str(file), f"{file}=0.5")
    )
    torch.testing.assert_close(full, predicted(trained.unet), rtol=1e-3, atol=1e-5)  # as peft applies it
    assert (full - plain).abs().max() > 1.5 * (half - plain).abs().max() > 1e-3


def _kohya_name(name: str) -> str:
    module, _, part = name.partition(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if part.startswith('A') else 'up'}.weight"


def test_a_lora_that_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    base = tiny_models.save("sd1", tmp_path / "base")
    (tmp_path / "other.safetensors").write_bytes((base / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"LoRA other.safetensors is damaged, or was made for another model"):
        load(base, "txt2img", lora=str(tmp_path / "other.safetensors"))
    with pytest.raises(ModelError, match="no LoRA file at"):
        loras(str(tmp_path / "nothing.safetensors"))
    with pytest.raises(ModelError, match="must be a number"):
        loras(f"{tmp_path / 'other.safetensors'}=much")


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # diffusers passes a tensor to NumPy
@pytest.mark.thorough
def test_every_scheduler_that_is_offered_generates(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["txt2img"]
    kinds = schedulers(pipeline)
    assert {"DDIMScheduler", "EulerDiscreteScheduler", type(pipeline.scheduler).__name__} <= set(kinds)
    usual = np.asarray(pipeline("a red apple", num_inference_steps=10, generator=generator(1)).images[0], dtype=int)
    takes = {name: options(kind) for name, kind in kinds.items()}
    for name in (*kinds, "Euler Karras", "DPM++ 2M SDE", "DDIM trailing"):
        arguments = {"prompt": "a red apple", "num_inference_steps": 10, "generator": generator(1)}
        job = PipelineJob(pipeline, arguments, scheduler(pipeline, find_sampler(name, takes, zero_snr=True)[0]))
        job.start()
        while job.call is not None:
            job.advance(forward(job.call))
        assert job.error is None, (name, job.error)
        # not the same image, but one of the same colours
        colours = np.asarray(job.result.images[0], dtype=int).mean((0, 1)) - usual.mean((0, 1))
        assert np.abs(colours).max() < 60, name


def test_no_warning_quotes_a_prompt(
    pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import diffusers.utils.logging

    monkeypatch.delenv("DIFFUSERS_VERBOSITY", raising=False)
    diffusers.utils.logging.set_verbosity_warning()  # as where a hub model was looked up before
    diffusers.utils.logging.enable_propagation()
    pipeline = load(EMBEDDED, "txt2img")["txt2img"]
    pipeline("a very private apple " * 50, num_inference_steps=1)
    diffusers.utils.logging.disable_propagation()
    assert "private" not in caplog.text


def test_a_model_without_a_unet_is_a_sentence(tmp_path: Path) -> None:
    index = {"_class_name": "NoSuchPipeline", "_diffusers_version": "0.42.0"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path, "txt2img")
    with pytest.raises(ModelError, match="x is a SimpleNamespace, which has no UNet"):
        _check_family(SimpleNamespace(transformer=None), ["txt2img"], "x")


def test_channels_last_generates_the_same_images(pipelines: dict[str, Any]) -> None:
    other = load(EMBEDDED, channels_last=True)
    request = a_request("img2img", "a house", 1, 5, 3.5)
    for module in (other["img2img"].unet.conv_in, other["img2img"].vae.decoder.conv_in):
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
    images = [np.asarray(generated_together(each, [request])[0][0], dtype=int) for each in (other, pipelines)]
    assert np.abs(images[0] - images[1]).max() <= 2


def test_a_cpus_bfloat16_generates_nearly_the_same_images(pipelines: dict[str, Any]) -> None:
    other = load(EMBEDDED, dtype=torch.bfloat16, channels_last=True)
    requests = [a_request(task, "a house", 1, 5, 3.5) for task in TASKS]
    made, expected = (
        [np.asarray(image, dtype=int) for image in generated_together(each, requests)[0]] for each in (other, pipelines)
    )
    for image, exact in zip(made, expected, strict=True):
        assert np.abs(image - exact).mean() < 6
