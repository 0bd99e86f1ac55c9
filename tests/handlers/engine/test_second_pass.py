"""A request with a second pass, alone: its two jobs, its progress, and what can end it in between."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from handlers.engine.generation import Generation
from handlers.wire import Failed
from tests.support.generations import (
    ENCODING,
    ENDED,
    RUNNING,
    SIDE,
    STEPS,
    Bench,
    Pipeline,
    images_of,
    message,
    red_of,
    step,
    steps_told,
)  # fmt: skip

LARGE = {"hires_width": 2 * SIDE, "hires_height": 2 * SIDE, "hires_steps": 4, "hires_strength": 0.5}
SECOND_STEPS = 2
IN_ALL = STEPS + SECOND_STEPS


class First(Pipeline):
    """It gives its image or its latents, as it is told."""

    def __call__(  # type: ignore[override]
        self, prompt: str, num_inference_steps: int, width: int, height: int, generator: Any, output_type: str = "pil"
    ) -> Any:
        output = super().__call__(prompt, num_inference_steps, width, height, generator)
        return SimpleNamespace(images=torch.ones(1, 4, height // 8, width // 8)) if output_type == "latent" else output


class Second(Pipeline):
    """Changes its image's green."""

    def __init__(self, fault: BaseException | None = None) -> None:
        super().__init__(fault=fault)
        self.seen: list[Any] = []

    def __call__(  # type: ignore[override]
        self, prompt: str, num_inference_steps: int, image: Any, strength: float, generator: Any
    ) -> Any:
        self.seen.append(image)
        output = super().__call__(prompt, int(num_inference_steps * strength), 2 * SIDE, 2 * SIDE, generator)
        changed = Image.merge("RGB", [output.images[0].getchannel(0), *[Image.new("L", (2 * SIDE, 2 * SIDE), 200)] * 2])
        return SimpleNamespace(images=[changed], nsfw_content_detected=[True])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def opened(bench: Bench, upscaler: str = "Lanczos", second: Second | None = None, **options: Any) -> Generation:
    return bench.opened_in(
        RUNNING, pipeline=First(), img2img=second or Second(), progress=True, hires_upscaler=upscaler, **LARGE | options
    )


def run(bench: Bench, generation: Generation) -> None:
    while generation.state is not ENDED:
        step(generation)
        bench.pool.run_all()


@pytest.mark.parametrize("upscaler", ["Nearest", "Latent"])
def test_the_second_pass_follows_each_first_one(bench: Bench, upscaler: str) -> None:
    second = Second()
    generation = opened(bench, upscaler, second, num_outputs=2)
    run(bench, generation)
    images = images_of(generation)
    assert [(image["seed"], red_of(image), image["nsfw"]) for image in images] == [(7, 7, True), (8, 8, True)]
    assert [(image["width"], image["height"]) for image in images] == [(2 * SIDE, 2 * SIDE)] * 2
    if upscaler == "Latent":
        assert [seen.shape for seen in second.seen] == [(1, 4, SIDE // 4, SIDE // 4)] * 2
    else:
        assert [seen.getpixel((0, 0))[0] for seen in second.seen] == [7, 8]
        assert {seen.size for seen in second.seen} == {(2 * SIDE, 2 * SIDE)}


def test_the_pool_enlarges_the_image_and_no_step_waits_for_it(bench: Bench) -> None:
    generation = opened(bench)
    for _ in range(1 + STEPS + 1):  # the start, the steps, the decoding
        step(generation)
    first = generation.slots[0].job
    assert first.ended and generation.state is RUNNING and len(bench.pool.waiting) == 1
    generation.collect()
    assert generation.slots[0].job is first and len(bench.pool.waiting) == 1
    bench.pool.run()
    generation.collect()
    assert not generation.slots[0].job.started and generation.slots[0].job.has_image


def test_the_progress_is_of_both_passes(bench: Bench) -> None:
    generation = opened(bench)
    run(bench, generation)
    assert steps_told(generation) == [(done, IN_ALL) for done in range(1, IN_ALL + 1)]


def test_a_preview_has_the_guidance_scale_of_its_pass(bench: Bench) -> None:
    seen: list[tuple[int, float]] = []

    class Previews:
        looks_back = False

        def look(self, call: Any, output: Any, guidance_scale: float) -> Any:
            seen.append((call.area, guidance_scale))

        def render(self, look: Any) -> str:
            return ""

    options = {"preview": "true", "guidance_scale": 5, "hires_guidance_scale": 2}
    generation = opened(bench, "Latent", preview_map=Previews(), **options)
    while generation.state is RUNNING:
        slot = generation.slots[0]
        if slot.waits_for_denoiser:
            generation.preview(slot, None)
        step(generation)
        bench.pool.run_all()
    assert seen == [((SIDE // 8) ** 2, 5.0)] * STEPS + [((SIDE // 4) ** 2, 2.0)] * SECOND_STEPS


@pytest.mark.parametrize("steps", [STEPS + 2, STEPS + 3, STEPS + 4])
def test_it_can_be_cancelled_between_and_in_the_passes(bench: Bench, steps: int) -> None:
    generation = opened(bench)
    for _ in range(steps):
        step(generation)
        if steps > STEPS + 2:
            bench.pool.run_all()
    jobs = [slot.job for slot in generation.slots]
    generation.cancel()
    assert generation.state is ENDED and all(job.ended for job in jobs) and not generation.slots
    bench.pool.run_all()
    generation.collect()
    assert not generation.slots and generation.ending is None


@pytest.mark.parametrize("in_first", [True, False])
def test_a_failure_of_either_pass_ends_the_request(bench: Bench, in_first: bool) -> None:
    fault = RuntimeError("a fault")
    generation = bench.opened_in(
        RUNNING, pipeline=First(fault=fault if in_first else None), img2img=Second(None if in_first else fault),
        hires_upscaler="Latent", **LARGE,
    )  # fmt: skip
    run(bench, generation)
    failed = message(generation)
    assert isinstance(failed, Failed) and failed.status == 500


def test_the_last_image_is_encoded_once_both_passes_have_ended(bench: Bench) -> None:
    generation = opened(bench, "Latent")
    for _ in range(1 + STEPS + 1 + 1 + SECOND_STEPS):
        step(generation)
        assert generation.state is RUNNING and not bench.pool.waiting
    step(generation)
    assert generation.state is ENCODING and len(bench.pool.waiting) == 1
