"""Jobs of every family with a transformer, on its stock pipelines: alone, together, and what they have in common."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from handlers.engine.pipeline_job import PipelineJob
from handlers.errors import InvalidRequest, ModelError
from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward
from handlers.forward.signature import CallSignature
from handlers.imaging.regions import Crop
from handlers.pipelines.arguments import pipeline_arguments, without_effect
from handlers.pipelines.defaults import model_defaults
from handlers.pipelines.families import rows_with_guidance
from handlers.pipelines.loras import SUFFIXES, Loras
from handlers.pipelines.low_memory import offload
from handlers.pipelines.named_files import NamedFiles
from handlers.pipelines.noise import generator
from handlers.pipelines.previews import fit_preview
from handlers.request.fields import GenerationRequest
from handlers.wire import TASKS
from tests.support import tiny_transformers
from tests.support.jobs import a_request, generated_alone, generated_together, load
from tests.support.networks import save_transformer_lora


@dataclass
class Family:
    name: str
    folder: Path
    pipelines: dict[str, Any]

    def job(self, request: GenerationRequest) -> PipelineJob:
        pipeline = self.pipelines[request.task]
        arguments = pipeline_arguments(request, pipeline, request.crops[0])
        return PipelineJob(pipeline, arguments | {"generator": generator(request.seed)})

    def first_call(self, request: GenerationRequest) -> DenoiserCall:
        job = self.job(request)
        job.start()
        call = job.call
        job.cancel()
        assert isinstance(call, DenoiserCall), job.error
        return call


@pytest.fixture(scope="module", params=[name for name in tiny_transformers.FAMILIES if name != "sd3_without_t5"])
def family(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    folder = tiny_transformers.save(request.param, tmp_path_factory.mktemp(request.param))
    yield Family(request.param, folder, load(folder))


def sized(request: GenerationRequest, width: int, height: int) -> GenerationRequest:
    return replace(request, crops=(Crop.whole((width, height), (width, height)),))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


@pytest.mark.parametrize("task", TASKS)
def test_alone_an_image_is_the_stock_pipelines(family: Family, task: str) -> None:
    for guidance_scale in (4.0, 0.0):
        request = a_request(task, "a red house", 3, 3, guidance_scale)
        (image,), _ = generated_together(family.pipelines, [request])
        assert np.array_equal(pixels(image), pixels(generated_alone(family.pipelines, request)))
        assert np.ptp(pixels(image)) > 20


def test_stable_diffusion_3_needs_no_t5(tmp_path: Path) -> None:
    pipelines = load(tiny_transformers.save("sd3_without_t5", tmp_path), "txt2img")
    request = a_request("txt2img", "a red house", 3, 3, 4.0)
    (image,), _ = generated_together(pipelines, [request])
    assert np.array_equal(pixels(image), pixels(generated_alone(pipelines, request)))


def test_eight_mixed_requests_share_their_forwards(family: Family) -> None:
    requests = [
        replace(a_request(task, f"a {colour} house", seed, 3 + seed % 3, guidance), strength=0.5 + seed / 20)
        for seed, (task, colour, guidance) in enumerate(
            [("txt2img", "red", 4.0), ("txt2img", "blue", 0.0), ("txt2img", "red", 7.5), ("img2img", "green", 1.0),
             ("img2img", "red", 3.0), ("masking", "red", 5.0), ("masking", "red", 0.0), ("txt2img", "pink", 2.0)]
        )
    ]  # fmt: skip
    images, merged = generated_together(family.pipelines, requests)
    assert merged >= 3
    for image, request in zip(images, requests, strict=True):
        assert np.abs(pixels(image) - pixels(generated_alone(family.pipelines, request))).max() <= 2
    assert len({image.tobytes() for image in images}) == len(images)


def test_steps_are_those_of_the_pipeline_with_one_call_or_two(family: Family) -> None:
    job, calls = family.job(a_request("txt2img", "a house", 1, 3, 4.0)), 0
    job.start()
    while isinstance(job.call, DenoiserCall):
        job.advance(forward(job.call))
        calls += 1
    assert (job.steps_done, job.total_steps) == (3, 3)
    assert calls == (6 if family.name in ("flux_schnell", "qwen_image") else 3)
    job.cancel()


def test_a_job_can_be_cancelled_at_its_pause(family: Family) -> None:
    job = family.job(a_request("masking", "a house", 1, 3, 4.0))
    job.start()
    assert job.call is not None
    job.cancel()
    assert job.ended and job.error is None and job.result is None


def test_unguided_requests_are_one_row(family: Family) -> None:
    guided, unguided = (family.first_call(a_request("txt2img", "a house", 1, 3, scale)) for scale in (4.0, 0.0))
    assert unguided.rows == 1
    assert guided.rows == rows_with_guidance(family.pipelines["txt2img"])
    assert guided.rows == (2 if family.name in ("z_image", "sd3") else 1)


def test_calls_of_all_tasks_are_alike(family: Family) -> None:
    calls = [family.first_call(a_request(task, "a house", 1, 3, scale)) for task in TASKS for scale in (4.0, 0.0)]
    assert len(set(map(CallSignature.of, calls))) == 1


def test_calls_count_latent_pixels(family: Family) -> None:
    call = family.first_call(sized(a_request("txt2img", "a house", 1, 3, 0.0), 96, 64))
    assert call.area == 12 * 8


def test_only_z_image_takes_rows_of_unlike_sizes(family: Family) -> None:
    requests = [sized(a_request("txt2img", "a house", 1, 2, 0.0), *size) for size in ((64, 64), (80, 64), (128, 128))]
    square, wide, large = (CallSignature.of(family.first_call(request)) for request in requests)
    assert (square == wide) is (family.name == "z_image")
    assert square != large  # the padding of the small one would cost more than a call of its own
    images, merged = generated_together(family.pipelines, requests[:2])
    assert merged == (2 if family.name == "z_image" else 0)
    for image, request in zip(images, requests, strict=False):
        assert np.abs(pixels(image) - pixels(generated_alone(family.pipelines, request))).max() <= 2


def test_previews_come_from_the_latents_behind_the_noise(family: Family) -> None:
    preview_map = fit_preview(family.pipelines["txt2img"])
    assert preview_map is not None and preview_map.looks_back
    job = family.job(sized(a_request("txt2img", "a house", 1, 6, 4.0), 96, 64))
    job.start()
    assert job.stepped is None
    while isinstance(job.call, DenoiserCall):
        job.advance(forward(job.call))
    assert job.stepped is not None
    preview = preview_map.render(preview_map.look_back(job.stepped))
    assert Image.open(io.BytesIO(base64.b64decode(preview))).size == (12, 8)
    job.cancel()


def test_defaults_are_the_pipelines(family: Family) -> None:
    defaults = model_defaults(family.folder, family.pipelines["txt2img"])
    steps, guidance_scale, side = {
        "z_image": (9, 0.0, 1024),
        "sd3": (28, 7.0, 64),
        "flux_dev": (28, 3.5, 1024),
        "flux_schnell": (4, 0.0, 1024),
        "qwen_image": (50, 4.0, 1024),
    }[family.name]
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (steps, guidance_scale)
    assert (defaults.width, defaults.height, defaults.size_multiple) == (side, side, 16)


def test_what_a_family_does_not_know_is_named(family: Family) -> None:
    request = replace(a_request("txt2img", "a house", 1, 3, 4.0), clip_skip=1, eta=0.5)
    lost = {"sd3": "eta", "flux_dev": "negative_prompt, clip_skip, eta"}
    expected = lost.get(family.name, "clip_skip, eta")
    assert without_effect(request, family.pipelines["txt2img"]) == [f"{expected}: without effect on this model."]


def test_a_size_beyond_a_models_own_is_refused(family: Family) -> None:
    request = sized(a_request("txt2img", "a house", 1, 3, 4.0), 320, 64)
    if family.name == "sd3":
        with pytest.raises(InvalidRequest, match="width and height must be at most 256 for this model"):
            family.job(request)
    else:
        family.job(request)


def test_a_transformer_from_a_file(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = tiny_transformers.make(family.name).transformer
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    loaded = load(family.folder, "txt2img", transformer=str(tmp_path / "other.safetensors"))["txt2img"].transformer
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    (tmp_path / "rubbish.gguf").write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=r"rubbish.gguf cannot be loaded as a \w+: "):
        load(family.folder, "txt2img", transformer=str(tmp_path / "rubbish.gguf"))


def test_a_transformer_in_gguf_stays_quantised_and_takes_part_in_batches(family: Family, tmp_path: Path) -> None:
    state = load(family.folder, "txt2img")["txt2img"].transformer.state_dict()
    save_gguf(state, tmp_path / "small.gguf")
    pipelines = load(family.folder, transformer=str(tmp_path / "small.gguf"))
    stored = sum(p.numel() * p.itemsize for p in pipelines["txt2img"].transformer.parameters())
    assert stored < 0.6 * sum(tensor.numel() * tensor.itemsize for tensor in state.values())
    requests = [a_request(task, "a house", seed, 3, 4.0) for seed, task in enumerate(TASKS)]
    images, merged = generated_together(pipelines, requests)
    assert merged
    for image, request in zip(images, requests, strict=True):
        assert np.abs(pixels(image) - pixels(generated_alone(pipelines, request))).max() <= 2
        assert 0 < np.abs(pixels(image) - pixels(generated_alone(family.pipelines, request))).mean() < 8


def save_gguf(state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Writes matrices in 8 bits, as published files have them, and what cannot be cut into blocks of 32 as it is."""
    writer = gguf.GGUFWriter(file, "flux")
    for name, tensor in state.items():
        is_matrix = tensor.dim() == 2 and tensor.shape[1] % 32 == 0 and name.endswith("weight")
        kind = gguf.GGMLQuantizationType.Q8_0 if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_lora_is_the_stock_pipelines_and_takes_part_in_batches(family: Family, tmp_path: Path) -> None:
    save_transformer_lora(family.folder, tmp_path / "mine.safetensors")
    loras = Loras(family.pipelines["txt2img"], NamedFiles(tmp_path, SUFFIXES), 2**30)
    plain, tagged = (a_request("txt2img", f"a house{tag}", 3, 3, 4.0) for tag in ("", "<lora:mine:0.8>"))
    stock = load(family.folder, "txt2img")
    stock["txt2img"].load_lora_weights(str(tmp_path), weight_name="mine.safetensors", adapter_name="mine")
    stock["txt2img"].set_adapters(["mine"], [0.8])
    expected = pixels(generated_alone(stock, replace(plain)))
    (alone,), _ = generated_together(family.pipelines, [tagged], loras=loras)
    assert np.array_equal(pixels(alone), expected)
    images, merged = generated_together(family.pipelines, [plain, tagged, replace(tagged, seed=4)], loras=loras)
    assert merged == len(images) or merged == 2 * len(images)  # the two with the LoRA, in one call a step or in two
    assert np.array_equal(pixels(images[0]), pixels(generated_alone(family.pipelines, plain)))
    assert np.abs(pixels(images[1]) - expected).max() <= 2
    assert np.abs(pixels(images[0]) - expected).max() > 2


def test_low_memory_mode_has_one_part_besides_the_transformer(family: Family) -> None:
    pipelines = load(family.folder)
    transformer = pipelines["txt2img"].transformer
    before = [parameter.data_ptr() for parameter in transformer.parameters()]
    slot = offload(pipelines["txt2img"], torch.device("cpu"))
    requests = [a_request(task, "a house", seed, 3, 4.0) for seed, task in enumerate(TASKS)]
    images, _ = generated_together(pipelines, requests)
    for image, request in zip(images, requests, strict=True):
        assert np.abs(pixels(image) - pixels(generated_alone(family.pipelines, request))).max() <= 2
    assert [parameter.data_ptr() for parameter in transformer.parameters()] == before
    slot.empty()
