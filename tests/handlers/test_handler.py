"""The handler as TorchServe drives it, tick by tick; TorchServe itself comes in the end-to-end tests."""

import base64
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.engine.scheduling import Slot
from handlers.request.fields import ModelDefaults
from handlers.stable_diffusion import CombinedHandler
from tests.support.frontend import Context, Frontend
from tests.support.running import HANG_S
from tests.support.samples import b64, decode, half_mask, sample_image


def test_progress_then_the_result(frontend: Frontend) -> None:
    name = frontend.send(num_inference_steps=3, seed=4, headers={"X-Progress": "1"})
    frontend.run()
    messages = frontend.messages(name)
    assert messages[:-1] == [{"progress": {"step": i, "of": 3}} for i in (1, 2, 3)]
    image = messages[-1]["result"]["images"][0]
    assert image.keys() == {"base64", "seed", "mimetype", "mime_type", "width", "height", "nsfw"}
    assert (image["seed"], image["mimetype"], image["mime_type"], image["nsfw"]) == (4, "image/png", "image/png", False)


def test_a_preview_now_and_then_for_who_asks_for_it(frontend: Frontend) -> None:
    progress = {"X-Progress": "1"}
    shown = frontend.send(num_inference_steps=30, preview="true", num_outputs=2, seed=3, headers=progress)
    plain = frontend.send(num_inference_steps=5, preview="false", headers=progress)
    silent = frontend.send(num_inference_steps=5, preview="true", seed=3)
    wrong = frontend.send(preview="perhaps")
    frontend.run()
    lines = [message["progress"] for message in frontend.messages(shown)[:-1]]
    assert [line["step"] for line in lines] == [*range(1, 31)]
    images = [line["preview"] for line in lines if "preview" in line]
    assert 1 <= len(images) <= 10 and all(base64.b64decode(each).startswith(b"\xff\xd8\xff") for each in images)
    assert not any("preview" in message.get("progress", {}) for message in frontend.messages(plain))
    assert [*frontend.messages(silent)[0]] == ["result"]
    assert frontend.messages(wrong)[-1]["error"]["message"] == "preview must be true or false, not 'perhaps'."


def test_requests_of_all_kinds_merge_and_match_their_solo_images(frontend: Frontend) -> None:
    images = {"init_image": b64(sample_image())}
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("txt2img", {"num_inference_steps": 6}),
        ("img2img", images | {"num_inference_steps": 8, "strength": 0.6}),
        ("masking", images | {"mask_image": b64(half_mask()), "num_inference_steps": 5}),
        ("txt2img", {"num_inference_steps": 4, "guidance_scale": 1.0}),
        ("txt2img", {"num_inference_steps": 4, "height": 128}),
    ]
    solo = []
    for seed, (task, fields) in enumerate(kinds, 1):
        name = frontend.send(task, seed=seed, **fields)
        frontend.run()
        solo.append(decode(frontend.result(name)["images"][0]))
    merged_before = frontend.handler.engine.batcher.activity.merged_forwards
    with frontend.engine_held():
        names = [frontend.send(task, seed=seed, **fields) for seed, (task, fields) in enumerate(kinds, 1)]
    frontend.run()
    assert frontend.handler.engine.batcher.activity.merged_forwards > merged_before
    for name, expected in zip(names, solo, strict=True):
        assert np.abs(decode(frontend.result(name)["images"][0]) - expected).max() <= 2


def test_a_short_request_overtakes_long_ones(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = frontend.handler.engine.batcher
    step, under_way, go_on = batcher.step, threading.Event(), threading.Event()

    def step_and_wait(slots: Sequence[Slot]) -> list[Any]:
        outcomes = list(step(slots))
        if slots:
            under_way.set()
            go_on.wait(HANG_S)
        return outcomes

    monkeypatch.setattr(batcher, "step", step_and_wait)
    longer = [frontend.send(num_inference_steps=30) for _ in range(3)]
    frontend.run_until(under_way.is_set)
    short = frontend.send(num_inference_steps=3)
    frontend.tick()
    frontend.handler.generations[short].wait_until_parsed(HANG_S)
    go_on.set()
    frontend.run()
    assert frontend.order[0] == short and set(frontend.order[1:]) == set(longer)


def test_a_client_that_leaves_is_dropped_at_the_next_step(frontend: Frontend) -> None:
    stays, leaves = frontend.send(num_inference_steps=6), frontend.send(num_inference_steps=200)
    frontend.run_until(lambda: frontend.handler.generations and frontend.handler.generations[leaves].slots)
    slots = frontend.handler.generations[leaves].slots
    frontend.leave(leaves)
    frontend.tick()
    assert leaves not in frontend.handler.generations
    frontend.run_until(lambda: slots and all(slot.job.ended for slot in slots))
    frontend.run()
    assert frontend.result(stays)["status"] == "success"


def test_results_that_are_done_at_once_go_out_one_a_call(frontend: Frontend) -> None:
    with frontend.engine_held():
        names = [frontend.send(num_inference_steps=2, headers={"X-Progress": "1"}) for _ in range(4)]
    frontend.tick()
    give_up_at = time.monotonic() + HANG_S
    while any(g.ending is None for g in frontend.handler.generations.values()) and time.monotonic() < give_up_at:
        frontend.handler.engine.wait(has_news=False)
    frontend.run()
    for name in names:
        messages = frontend.messages(name)
        assert [*messages[0]] == ["progress"] and [*messages[-1]] == ["result"]
        assert sum("result" in message for message in messages) == 1
        assert [message["progress"]["step"] for message in messages[:-1]] == [1, 2]


def test_many_open_requests_all_finish(frontend: Frontend) -> None:
    names = [frontend.send(num_inference_steps=2, seed=i) for i in range(1, 33)]
    frontend.run()
    assert {frontend.result(name)["images"][0]["seed"] for name in names} == set(range(1, 33))


def test_a_flagged_image_is_black_even_under_a_mask(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    def flag(clip_input: Any, images: Any) -> Any:
        return torch.zeros_like(images), [True]

    fields = {"init_image": b64(sample_image()), "mask_image": b64(half_mask()), "num_inference_steps": 2}
    name = frontend.send("masking", **fields)
    checker = frontend.handler.worker.served["masking"].pipeline.safety_checker
    monkeypatch.setattr(checker, "forward", flag)
    frontend.run()
    image = frontend.result(name)["images"][0]
    assert image["nsfw"] is True and decode(image).max() == 0


def test_the_description_says_what_is_served(frontend: Frontend) -> None:
    name = frontend.send("describe")
    frontend.run()
    (description,) = frontend.result(name)["models"]
    assert description["tasks"] == ["txt2img", "img2img", "masking"]
    assert description["defaults"] == asdict(ModelDefaults(50, 7.5, 64, 64, scheduler="DPMSolverMultistepScheduler"))
    assert description["limits"]["max_num_outputs"] == 8
    assert description["activity"]["unet_forwards"] > 0


def test_what_is_known_is_said_at_once_though_a_neighbour_is_still_being_parsed(frontend: Frontend) -> None:
    parsing, go_on = threading.Event(), threading.Event()
    for _ in range(frontend.handler.worker.config.codec_threads):
        frontend.handler.worker.shared.pool.submit(lambda: (parsing.set(), go_on.wait(HANG_S)))
    parsing.wait(HANG_S)
    waits, asks = frontend.send(num_inference_steps=2), frontend.send("describe")
    frontend.tick()
    assert frontend.order == [asks] and frontend.lines[waits] == [b"\n"]
    go_on.set()
    frontend.run()
    assert frontend.result(waits)["status"] == "success"


def test_another_scheduler_is_the_requests_own(frontend: Frontend) -> None:
    usual, other = frontend.send(seed=1), frontend.send(seed=1, scheduler="EulerAncestralDiscreteScheduler")
    frontend.run()
    images = [decode(frontend.result(name)["images"][0]) for name in (usual, other)]
    assert (images[0] != images[1]).any()
    assert type(frontend.handler.worker.served["txt2img"].pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"


def test_a_prompt_is_encoded_once(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = frontend.handler.worker.served["txt2img"].pipeline.text_encoder.module
    encoded: list[Any] = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *a, **o: encoded.append(a) or forward(*a, **o))
    request = {"prompt": "a house that nobody asked for yet", "num_inference_steps": 1}
    several = frontend.send(num_outputs=3, **request)
    frontend.send("masking", init_image=b64(sample_image()), mask_image=b64(half_mask()), strength=1, **request)
    frontend.run()
    assert len(frontend.result(several)["images"]) == 3
    assert len(encoded) == 1  # the empty negative prompt was remembered from before


def test_the_engine_stands_still_while_nobody_asks(frontend: Frontend) -> None:
    """TorchServe makes no more calls once its last client has gone away, and does not say so either."""
    activity = frontend.handler.engine.batcher.activity
    before = activity.unet_forwards
    name = frontend.send(num_inference_steps=250)
    frontend.run_until(lambda: len(frontend.lines[name]) > 1)
    forwards = before
    while forwards != (forwards := activity.unet_forwards):
        time.sleep(1)
    assert forwards < before + 250
    frontend.leave(name)
    other = frontend.send(num_inference_steps=2)
    frontend.run()
    assert frontend.result(other)["status"] == "success" and activity.unet_forwards <= forwards + 3


def test_an_image_does_not_wait_for_the_step_of_others(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = frontend.handler.worker.served["txt2img"].pipeline.unet
    forward, may_go_on = unet.forward, threading.Event()
    in_time: list[bool] = []

    def slow(sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if len(sample) == 2:  # the longer one is alone
            in_time.append(may_go_on.wait(HANG_S))
        return forward(sample, *arguments, **options)

    monkeypatch.setattr(unet, "forward", slow)
    with frontend.engine_held():
        short, longer = frontend.send(num_inference_steps=2), frontend.send(num_inference_steps=9)
    frontend.run_until(lambda: frontend.order)
    assert frontend.order == [short] and not may_go_on.is_set()
    may_go_on.set()
    frontend.run()
    assert frontend.result(longer)["status"] == "success"
    assert in_time and all(in_time)  # else it waited for the step's end after all


def test_why_calls_do_not_merge_is_logged_if_asked_for(caplog: pytest.LogCaptureFixture, tiny_model: Path) -> None:
    handler = CombinedHandler()
    handler.initialize(Context(model=str(tiny_model), log_merging=True))
    try:
        frontend = Frontend(handler)
        for width in (128, 64):
            frontend.send(num_inference_steps=2, width=width, height=128)
        frontend.run()
    finally:
        logging.getLogger("handlers.engine.scheduling").setLevel(logging.NOTSET)
    assert "Two calls do not merge: " in caplog.text
