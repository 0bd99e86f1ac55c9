"""Second passes with a model: as the stock pipelines alone generate them, and beside other requests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from handlers.pipelines.latents import enlarge_latents
from handlers.stable_diffusion import CombinedHandler
from handlers.txt2img import Txt2ImgHandler
from tests.support import jobs, tiny_models
from tests.support.frontend import Context, Frontend
from tests.support.samples import decode

SIZE = {"hires_width": 128, "hires_height": 128}
FIELDS: dict[str, Any] = {"seed": 3, "num_inference_steps": 6, "hires_strength": 0.5, **SIZE}


def image(frontend: Frontend, **fields: Any) -> dict[str, Any]:
    name = frontend.send(**FIELDS | fields)
    frontend.run()
    (made,) = frontend.result(name)["images"]
    return dict(made)


def stock(pipelines: dict[str, Any], prompt: str, latent: str | None = None) -> np.ndarray:
    """The two passes one after the other, as a user of diffusers would write them."""

    def seed() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    common = {"num_inference_steps": 6, "guidance_scale": 7.5, "generator": seed()}
    with torch.no_grad():
        kind = {"output_type": "latent"} if latent else {}
        first = pipelines["txt2img"](prompt, width=64, height=64, **common, **kind).images
        if latent:
            larger: Any = enlarge_latents(first, (16, 16), latent)
        else:
            larger = first[0].resize((128, 128), Image.Resampling.LANCZOS)
        second = pipelines["img2img"](prompt, image=larger, strength=0.5, **common | {"generator": seed()})
    return np.asarray(second.images[0], dtype=int)


@pytest.mark.parametrize("upscaler", ["Lanczos", "Latent (antialiased)"])
def test_alone_the_image_is_the_stock_pipelines_to_the_bit(frontend: Frontend, tiny_model: Path, upscaler: str) -> None:
    expected = stock(jobs.load(tiny_model), "a house", upscaler if "Latent" in upscaler else None)
    assert np.array_equal(decode(image(frontend, prompt="a house", hires_upscaler=upscaler)), expected)


def test_beside_other_requests_it_is_nearly_the_same_and_holds_none_of_them_up(frontend: Frontend) -> None:
    kinds: list[dict[str, Any]] = [
        {"hires_upscaler": "Lanczos"}, {"hires_upscaler": "Latent"}, {"width": 128, "height": 128},
        {"hires_upscaler": "Lanczos", "hires_prompt": "a cat", "hires_guidance_scale": 1},
    ]  # fmt: skip
    alone = [decode(image(frontend, **kind)) for kind in kinds]
    with frontend.engine_held():
        names = [frontend.send(**FIELDS | kind) for kind in kinds]
        short = frontend.send(num_inference_steps=2)
    frontend.run()
    assert frontend.order[-len(names) - 1] == short
    for name, expected in zip(names, alone, strict=True):
        assert np.abs(decode(frontend.result(name)["images"][0]) - expected).max() <= 2


def test_the_safety_checker_sees_the_final_image_alone(
    frontend: Frontend, handler: CombinedHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    checker = handler.worker.served["img2img"].pipeline.safety_checker
    seen: list[tuple[int, ...]] = []

    def flags(images: Any, clip_input: Any) -> Any:
        seen.append(images.shape)
        return torch.zeros_like(images), [True]

    monkeypatch.setattr(checker, "forward", flags)
    made = image(frontend, hires_upscaler="Lanczos")
    assert made["nsfw"] is True and decode(made).max() == 0
    assert [max(shape) for shape in seen] == [128]


def test_its_progress_and_previews_go_on_through_both_passes(frontend: Frontend) -> None:
    name = frontend.send(**FIELDS, hires_upscaler="Lanczos", preview="true", headers={"X-Progress": "1"})
    frontend.run()
    lines = [message["progress"] for message in frontend.messages(name)[:-1]]
    assert [(line["step"], line["of"]) for line in lines] == [(step, 9) for step in range(1, 10)]
    assert any("preview" in line for line in lines)


def test_a_mistake_in_its_prompt_names_the_second_pass(frontend: Frontend) -> None:
    name = frontend.send(**FIELDS, hires_upscaler="Latent", hires_prompt="(a cat:20)")
    frontend.run()
    message = frontend.messages(name)[-1]["error"]["message"]
    assert message.startswith("In hires_prompt or hires_negative_prompt: prompt has the weight 20")


def test_a_warning_names_its_pass(frontend: Frontend) -> None:
    sent = FIELDS | {"hires_upscaler": "Latent", "guidance_scale": 1, "negative_prompt": "a dog"}
    lost = "negative_prompt: without effect at guidance_scale=1."
    for guidance, warning in ((7, f"In the first pass: {lost}"), (1, lost)):
        name = frontend.send(**sent, hires_guidance_scale=guidance)
        frontend.run()
        assert frontend.result(name)["warnings"] == [warning]


def test_both_passes_vary(frontend: Frontend) -> None:
    plain = decode(image(frontend, hires_upscaler="Latent"))
    varied = image(frontend, hires_upscaler="Latent", variation_seed=8, variation_strength=0.5)
    assert varied["variation_seed"] == 8 and not np.array_equal(decode(varied), plain)


def test_an_archive_of_txt2img_alone_has_second_passes(tiny_model: Path) -> None:
    handler = Txt2ImgHandler()
    handler.initialize(Context(model=str(tiny_model)))
    frontend = Frontend(handler)
    assert image(frontend, hires_upscaler="Lanczos")["width"] == 128
    (model,) = handler.worker.describe(0)["models"]
    assert model["tasks"] == ["txt2img"] and "Lanczos" in model["upscalers"]


@pytest.mark.parametrize("family", ["sdxl", "lcm", "turbo"])
@pytest.mark.parametrize("upscaler", ["Lanczos", "Latent"])
def test_every_family_has_second_passes(tmp_path: Path, family: str, upscaler: str) -> None:
    handler = CombinedHandler()
    handler.initialize(Context(model=str(tiny_models.save(family, tmp_path / "model"))))
    assert image(Frontend(handler), hires_upscaler=upscaler)["width"] == 128
