"""ControlNets in requests to a handler: as the stock pipelines alone use them, and beside other requests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, MultiControlNetModel
from safetensors.torch import load_file, save_file

from handlers.engine.pipeline_job import PipelineJob
from handlers.forward.calls import ControlCall, DenoiserCall
from handlers.forward.merging import forward
from handlers.pipelines.controlnets import SUFFIXES, ControlNets, guided
from handlers.pipelines.low_memory import offload
from handlers.pipelines.named_files import NamedFiles
from handlers.request.control import Control
from handlers.stable_diffusion import CombinedHandler
from tests.support import jobs, tiny_models
from tests.support.frontend import Context, Frontend
from tests.support.networks import save_controlnet
from tests.support.samples import b64, decode, sample_image

CONTROL, OTHER = sample_image(64, 64), sample_image(64, 64).rotate(180)
SECOND = {"controlnet_2": "depth", "control_image_2": b64(OTHER), "control_scale_2": 0.4, "control_end_2": 0.5}
STOCK = {"txt2img": "", "img2img": "Img2Img", "masking": "Inpaint"}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlnets")
    save_controlnet(tiny_model, folder / "edges")
    save_controlnet(tiny_model, folder / "depth", seed=2)
    weights = load_file(folder / "edges" / "diffusion_pytorch_model.safetensors")
    save_file(weights, folder / "alone.safetensors")
    save_controlnet(tiny_models.save("sdxl", folder.with_name("sdxl")), folder / "large")
    (folder / "damaged.safetensors").write_bytes(b"no model")
    return folder


@pytest.fixture(scope="module")
def handler(tiny_model: Path, folder: Path) -> CombinedHandler:
    handler = CombinedHandler()
    handler.initialize(Context(model=str(tiny_model), controlnets_dir=str(folder), max_batch_rows=16))
    return handler


def fields(task: str, **changed: Any) -> dict[str, Any]:
    images: dict[str, Any] = {} if task == "txt2img" else {"init_image": b64(sample_image(64, 64)), "strength": 0.5}
    if task == "masking":
        images["mask_image"] = b64(sample_image(64, 64).convert("L").point([0] * 128 + [255] * 128))
    common = {"prompt": "a house", "seed": 3, "num_inference_steps": 4, "controlnet": "edges", "control_scale": 0.7}
    return {**common, **images, "control_image": b64(CONTROL), **changed}


def sent(frontend: Frontend, task: str, **changed: Any) -> dict[str, Any]:
    name = frontend.send(task, **fields(task, **changed))
    frontend.run()
    return dict(frontend.messages(name)[-1])


def image(answer: dict[str, Any]) -> np.ndarray:
    return np.asarray(decode(answer["result"]["images"][0]), dtype=int)


@pytest.mark.parametrize("task", ["txt2img", "img2img"])
def test_alone_the_image_is_the_stock_pipelines_to_the_bit(
    frontend: Frontend, tiny_model: Path, folder: Path, task: str
) -> None:
    plain = jobs.load(tiny_model)[task]
    kind = getattr(diffusers, f"StableDiffusionControlNet{STOCK[task]}Pipeline")
    net = ControlNetModel.from_pretrained(folder / "edges")
    pipeline = kind(**plain.components, controlnet=net, requires_safety_checker=False)
    images = {"image": CONTROL} if task == "txt2img" else {"image": sample_image(64, 64), "control_image": CONTROL}
    options = {"strength": 0.5} if task == "img2img" else {"width": 64, "height": 64}
    with torch.no_grad():
        expected = pipeline(
            "a house", **images, **options, num_inference_steps=4, guidance_scale=7.5,
            controlnet_conditioning_scale=0.7, generator=torch.Generator().manual_seed(3),
        ).images[0]  # fmt: skip
    made = image(sent(frontend, task))
    assert np.array_equal(made, np.asarray(expected, dtype=int))
    assert not np.array_equal(made, image(sent(frontend, task, controlnet="")))


@pytest.mark.parametrize("task", STOCK)
@pytest.mark.parametrize(("family", "low_memory"), [("sd1", False), ("sdxl", False), ("sd1", True)])
def test_several_alone_are_the_stock_pipelines_to_the_bit(
    family: str, low_memory: bool, task: str, tmp_path: Path
) -> None:
    model, nets = tiny_models.save(family, tmp_path / "model"), tmp_path / "nets"
    save_controlnet(model, nets / "edges")
    save_controlnet(model, nets / "depth", seed=2)
    files = NamedFiles(nets, SUFFIXES).all()
    plain = jobs.load(model)[task]
    if low_memory:
        offload(plain, jobs.CPU)
    pipeline = guided(plain)
    controls = (Control("edges", CONTROL, 0.7, 0.0, 1.0, "crop"), Control("depth", OTHER, 0.4, 0.0, 0.5, "crop"))
    request = replace(jobs.a_request(task, "a house", 3, 4, 7.5), controls=controls)

    def load_nets(_: Any) -> list[Any]:
        return ControlNets(NamedFiles(nets, SUFFIXES)).load([files["edges"], files["depth"]], pipeline)

    (made,), _ = jobs.generated_together({task: pipeline}, [request], load_nets=load_nets)
    pipeline.controlnet = MultiControlNetModel(
        [ControlNetModel.from_pretrained(nets / name) for name in ("edges", "depth")]
    )
    assert np.array_equal(made, jobs.generated_alone({task: pipeline}, request))


def test_several_by_their_fields(frontend: Frontend) -> None:
    both = image(sent(frontend, "txt2img", **SECOND))
    others = [{}, SECOND | {"control_scale_2": 0.5}, SECOND | {"control_image_2": b64(CONTROL)}]
    for other in others:
        assert not np.array_equal(both, image(sent(frontend, "txt2img", **other)))
    first = {name.removesuffix("_2"): value for name, value in SECOND.items()}
    second = {"controlnet_3": "edges", "control_image_3": b64(CONTROL), "control_scale_3": 0.7}
    assert np.abs(both - image(sent(frontend, "txt2img", **first, **second))).max() <= 1  # the order of a sum


def test_a_request_can_be_cancelled_between_several(tiny_model: Path, folder: Path) -> None:
    controlnets = ControlNets(NamedFiles(folder, SUFFIXES))
    pipeline = guided(jobs.load(tiny_model, "txt2img")["txt2img"])
    nets = controlnets.load([controlnets.file("edges"), controlnets.file("depth")], pipeline)
    arguments = {"prompt": "a house", "image": [CONTROL, OTHER], "num_inference_steps": 2}
    job = PipelineJob(pipeline, arguments, load_nets=lambda: nets)
    job.start()
    paused = []
    for _ in range(5):
        assert isinstance(job.call, DenoiserCall)
        paused.append(job.call.module)
        job.advance(forward(job.call))
    assert paused == [*nets, pipeline.unet, *nets] and job.steps_done == 1
    job.cancel()
    assert job.ended and job.result is None and "forward" not in nets[1].__dict__


@pytest.mark.parametrize("task", STOCK)
def test_beside_other_requests_it_is_nearly_the_same(frontend: Frontend, task: str) -> None:
    kinds: list[dict[str, Any]] = [{}, {"control_end": 0.5}, {"seed": 8}, {"controlnet": "", "seed": 9}]
    kinds += [SECOND, {**SECOND, "seed": 10}]  # those with unlike numbers of ControlNets share what they have in common
    alone = [image(sent(frontend, task, **kind)) for kind in kinds]
    before = frontend.handler.worker.batcher.activity.merged_forwards
    with frontend.engine_held():
        names = [frontend.send(task, **fields(task, **kind)) for kind in kinds]
    frontend.run()
    for name, expected in zip(names, alone, strict=True):
        assert np.abs(image(frontend.messages(name)[-1]) - expected).max() <= 2
    assert frontend.handler.worker.batcher.activity.merged_forwards > before


def test_with_openvino_such_requests_run_in_torch(frontend: Frontend, tiny_model: Path, folder: Path) -> None:
    other = CombinedHandler()
    other.initialize(Context(model=str(tiny_model), controlnets_dir=str(folder), engine="openvino"))
    for kind in ({}, {"width": 72}, {"controlnet": ""}):
        expected = image(sent(frontend, "txt2img", **kind))
        assert np.abs(image(sent(Frontend(other), "txt2img", **kind)) - expected).max() <= 3


def test_a_file_alone_is_the_same_as_a_repositorys_folder(frontend: Frontend) -> None:
    assert frontend.handler.worker.describe(0)["models"][0]["controlnets"] == [
        "alone",
        "damaged",
        "depth",
        "edges",
        "large",
    ]
    assert np.array_equal(image(sent(frontend, "txt2img", controlnet="Alone")), image(sent(frontend, "txt2img")))


def test_the_init_image_guides_where_there_is_no_other(frontend: Frontend) -> None:
    init = image(sent(frontend, "img2img", control_image=""))
    assert np.array_equal(init, image(sent(frontend, "img2img", control_image=b64(sample_image(64, 64)))))


def test_both_passes_are_guided(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    sides: set[int] = set()

    def noting(call: ControlCall) -> Any:
        sides.add(call.sample.shape[-1])
        return DenoiserCall.run(call)

    monkeypatch.setattr(ControlCall, "run", noting)
    second = {**SECOND, "hires_upscaler": "Lanczos", "hires_width": 128, "hires_height": 128, "hires_strength": 0.5}
    assert image(sent(frontend, "txt2img", **second)).shape == (128, 128, 3)
    assert sides == {8, 16}  # latent pixels


def test_a_variation_moves_the_noise(frontend: Frontend) -> None:
    moved = image(sent(frontend, "txt2img", variation_seed=5, variation_strength=0.5))
    assert not np.array_equal(moved, image(sent(frontend, "txt2img")))
    assert np.array_equal(moved, image(sent(frontend, "txt2img", variation_seed=5, variation_strength=0.5)))


def test_one_that_is_used_by_several_jobs_is_in_memory_once(frontend: Frontend) -> None:
    controlnets = frontend.handler.worker.shared.controlnets
    pipeline = frontend.handler.worker.served["txt2img"].pipeline
    edges, alone = controlnets.file("edges"), controlnets.file("alone")
    (first,) = controlnets.load([edges], pipeline)
    other, again, once_more = controlnets.load([alone, edges, edges], pipeline)
    assert once_more is again is first is not other


@pytest.mark.parametrize("net", ["large", "damaged"])
def test_one_of_another_kind_or_none_is_refused(frontend: Frontend, net: str) -> None:
    error = sent(frontend, "txt2img", controlnet=net)["error"]
    assert error["status"] == 400 and f"{net} is not a ControlNet for this kind of model" in error["message"]
