"""A whole worker on a GPU that is not there, as TorchServe drives it: loaded, warmed up, and asked for images."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.engine.scheduling import Slot
from handlers.forward.cuda_graphs import GraphedForward
from handlers.pipelines.defaults import DEFAULTS_FILE
from handlers.stable_diffusion import CombinedHandler
from handlers.worker import Worker
from tests.support import tiny_transformers
from tests.support.fake_cuda import Card, Wait, work_in_this_thread
from tests.support.fake_streams import fake_gpu
from tests.support.frontend import Context, Frontend
from tests.support.networks import save_lora
from tests.support.samples import b64, decode, half_mask, sample_image

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("txt2img", {"num_inference_steps": 12, "preview": "true"}),
    ("img2img", {"num_inference_steps": 12, "strength": 0.6}),
    ("masking", {"num_inference_steps": 10}),
]


pytestmark = pytest.mark.thorough


@pytest.fixture
def card() -> Iterator[Card]:
    with fake_gpu() as card:
        yield card


def start(card: Card, monkeypatch: pytest.MonkeyPatch, model: Path, **settings: Any) -> CombinedHandler:
    load = Worker.load

    def load_on_the_card(*arguments: Any) -> Worker:
        work_in_this_thread(card)  # the engine's
        return load(*arguments)

    monkeypatch.setattr(Worker, "load", load_on_the_card)
    handler = CombinedHandler()
    handler.initialize(Context(model=str(model), device="cuda", dtype="float32", max_batch_rows=16, **settings))
    return handler


def images_of(handler: CombinedHandler) -> list[np.ndarray]:
    """Of REQUESTS, which begin together."""
    frontend = Frontend(handler)
    names = []
    with frontend.engine_held():
        for seed, (task, fields) in enumerate(REQUESTS, 1):
            images = {"init_image": b64(sample_image())} if task != "txt2img" else {}
            images |= {"mask_image": b64(half_mask())} if task == "masking" else {}
            names.append(frontend.send(task, seed=seed, headers={"X-Progress": "1"}, **fields, **images))
    frontend.run()
    previews = [message["progress"].get("preview") for message in frontend.messages(names[0])[:-1]]
    assert any(previews)
    return [decode(frontend.result(name)["images"][0]) for name in names]


class Steps:
    """What the engine waited for after a step, if the next one served some of its jobs and no others."""

    def __init__(self, card: Card, handler: CombinedHandler) -> None:
        self._card, self._jobs, self._seen = card, set[int](), 0
        self.same: list[list[Wait]] = []  # the next step had the same jobs
        self.fewer: list[list[Wait]] = []  # some had ended, and were decoded
        self._step = handler.engine.batcher.step
        handler.engine.batcher.step = self  # type: ignore[assignment, method-assign]

    def __call__(self, slots: Sequence[Slot]) -> list[Any]:
        jobs = {id(slot.job) for slot in slots}
        waits = [wait for wait in self._card.waits[self._seen :] if wait.thread == "engine"]
        if jobs and jobs <= self._jobs:
            (self.same if jobs == self._jobs else self.fewer).append(waits)
        self._jobs, self._seen = jobs, len(self._card.waits)
        return self._step(slots)


@pytest.mark.parametrize(
    "settings", [{}, {"low_memory": True}, {"cuda_graphs": True, "channels_last": "always"}], ids=str
)
def test_its_images_are_the_cpus_and_no_step_waits_for_the_one_before(
    settings: dict[str, Any], tiny_model: Path, handler: CombinedHandler, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = images_of(handler)  # on the CPU: its thread knows no GPU
    on_card = start(card, monkeypatch, tiny_model, **settings)
    card.late = 3
    steps = Steps(card, on_card)
    for image, alike in zip(images_of(on_card), expected, strict=True):
        assert np.abs(image - alike).max() <= 2
    assert str(on_card.worker.device) == "cuda" and on_card.engine.batcher.activity.merged_forwards > 0
    assert len(steps.same) >= 5 and steps.fewer
    assert not on_the_steps_stream(steps.same)
    if "cuda_graphs" in settings:
        graphs = on_card.engine.batcher.run.args[1]  # type: ignore[attr-defined]
        assert isinstance(graphs, GraphedForward) and graphs.captures > 1
        assert not on_the_steps_stream(steps.fewer)  # images are decoded, checked and fetched in another


@pytest.mark.parametrize(
    ("family", "settings"), [("z_image", {"low_memory": True}), ("flux_dev", {"cuda_graphs": True})], ids=str
)
def test_a_transformer_on_the_card(
    family: str, settings: dict[str, Any], card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # transformers' other threads know nothing of the card
    model = tiny_transformers.save(family, tmp_path)
    (model / DEFAULTS_FILE).write_text('{"guidance_scale": 4, "width": 64, "height": 64}')
    on_cpu = CombinedHandler()
    on_cpu.initialize(Context(model=str(model), device="cpu", max_batch_rows=16))
    expected = images_of(on_cpu)
    on_card = start(card, monkeypatch, model, **settings)
    steps = Steps(card, on_card)
    for image, alike in zip(images_of(on_card), expected, strict=True):
        assert np.abs(image - alike).max() <= 2
    assert on_card.engine.batcher.activity.merged_forwards > 0
    # the positions of a job's tokens are read before its first step
    assert len(steps.same) >= 5 and not on_the_steps_stream(steps.same[1:])


@pytest.mark.parametrize("settings", [{}, {"low_memory": True}, {"cuda_graphs": True}], ids=str)
def test_a_lora_on_the_card(
    settings: dict[str, Any],
    tiny_model: Path,
    handler: CombinedHandler,
    card: Card,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # transformers' other threads know nothing of the card
    for seed, name in enumerate("ab", 1):
        save_lora(tmp_path / f"{name}.safetensors", seed=seed)
    on_cpu = CombinedHandler()
    on_cpu.initialize(Context(model=str(tiny_model), device="cpu", lora_dir=str(tmp_path)))
    on_card = start(card, monkeypatch, tiny_model, lora_dir=str(tmp_path), max_lora_bytes=1, **settings)
    for prompt in ("a house<lora:a>", "a house<lora:a:1:0><lora:b>", "a house", "a (house:1)<lora:b>"):
        images = []
        for frontend in (Frontend(on_cpu), Frontend(on_card)):
            name = frontend.send(prompt=prompt, seed=3, num_inference_steps=4)
            frontend.run()
            images.append(decode(frontend.result(name)["images"][0]))
        assert np.abs(images[0] - images[1]).max() <= 2


def on_the_steps_stream(steps: Sequence[Sequence[Wait]]) -> list[str]:
    return [str(wait) for waits in steps for wait in waits if wait.stream is None]
