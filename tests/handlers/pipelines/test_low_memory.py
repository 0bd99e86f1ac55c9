"""Low-memory mode, with the CPU's own memory in the GPU's place: copies that come and go all the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.imaging.regions import Crop
from handlers.pipelines.low_memory import OffloadSlot, offload
from handlers.pipelines.prompt_cache import remember_prompts
from handlers.pipelines.prompts import Prompts
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_alone, generated_together, load

CPU = torch.device("cpu")


class Counting(OffloadSlot):
    """Makes real copies, which `.to` does not between a device and itself, and notes who is in."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.visits: list[str] = []

    def enter(self, module: torch.nn.Module) -> None:
        if module is not self._module:
            self.visits.append(type(module).__name__)
        super().enter(module)
        for tensor, data in self._on_cpu:
            if tensor.data is data:
                tensor.data = data.clone()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_overlapping_jobs_share_one_slot(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.save(family, tmp_path)
    requests = [
        # larger than the VAE's own size, so that it is generated in tiles
        replace(a_request("txt2img", "a red apple", 1, 3, 7.5), crops=(Crop.whole((128, 96), (128, 96)),)),
        a_request("img2img", "a house", 2, 5, 7.5),
        a_request("masking", "a cat", 3, 4, 7.5),
    ]
    plain = load(folder)
    untiled = np.asarray(generated_alone(plain, requests[0]), dtype=int)
    plain["txt2img"].vae.enable_tiling()
    expected = [np.asarray(generated_alone(plain, request), dtype=int) for request in requests]

    assert np.abs(expected[0] - untiled).max() > 2

    monkeypatch.setattr("handlers.pipelines.low_memory.OffloadSlot", lambda _: Counting())
    pipelines = load(folder)
    pipeline = pipelines["txt2img"]
    on_cpu = {name: p.data_ptr() for name, p in pipeline.vae.named_parameters()}
    slot: Any = offload(pipeline, CPU)
    unet = [p.data_ptr() for p in pipeline.unet.parameters()]
    together, merged = generated_together(pipelines, requests)
    assert merged >= 2
    for image, alone in zip(together, expected, strict=True):
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2
    assert {"CLIPTextModel", "AutoencoderKL"} <= set(slot.visits) and "UNet2DConditionModel" not in slot.visits
    assert [p.data_ptr() for p in pipeline.unet.parameters()] == unet  # never moved
    slot.empty()
    assert {name: p.data_ptr() for name, p in pipeline.vae.named_parameters()} == on_cpu  # where it was loaded to


@pytest.mark.parametrize(("family", "encoders"), [("sd1", 1), ("sdxl", 2)])
def test_long_prompts_and_skipped_layers_have_their_encoder_in_the_slot(
    family: str, encoders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.save(family, tmp_path)
    plain, pipeline = (load(folder, "txt2img")["txt2img"] for _ in range(2))
    given = {"prompt": "x", "negative_prompt": "", "guidance_scale": 7.5, "clip_skip": 1}

    def encoded(pipeline: Any) -> dict[str, Any]:
        with torch.no_grad():
            return Prompts("a house BREAK (red)", "").arguments_for(pipeline, given)

    remember_prompts([plain])
    expected = encoded(plain)
    monkeypatch.setattr("handlers.pipelines.low_memory.OffloadSlot", lambda _: Counting())
    slot: Any = offload(pipeline, CPU)
    remember_prompts([pipeline])
    for _ in range(2):  # the second time from the cache, while the VAE is in
        made = encoded(pipeline)
        assert all(torch.equal(made[name], expected[name]) for name in expected if name.endswith("embeds"))
        slot.enter(pipeline.vae)
    if family == "sd1":  # SDXL's pipelines have no norm of their own
        assert slot.visits == ["CLIPTextModel", "AutoencoderKL"] * 2
    assert len(set(slot.visits)) == encoders + 1


def test_a_module_that_changed_its_format_keeps_it_when_it_leaves() -> None:
    slot, module = OffloadSlot(CPU), torch.nn.Linear(2, 2).half()
    before = module.weight.clone()
    slot.enter(module)
    module.float()
    slot.empty()
    assert module.weight.dtype == torch.float32 and (module.weight == before.float()).all()
    module.half()
    assert (module.weight == before).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, to which the copy does not fail")
def test_a_module_that_had_no_room_is_out_again() -> None:
    module, slot = torch.nn.Linear(2, 2), OffloadSlot(torch.device("cuda"))
    for _ in range(2):
        with pytest.raises((RuntimeError, AssertionError)):
            slot.enter(module)
        assert module.weight.device == CPU


def test_the_cpu_needs_no_such_mode(tmp_path: Path) -> None:
    folder = tiny_models.save("sd1", tmp_path)
    assert not hasattr(load(folder, "txt2img", low_memory=True)["txt2img"].vae, "_hf_hook")
