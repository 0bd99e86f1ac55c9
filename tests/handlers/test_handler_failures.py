"""Requests that fail in the handler: alone, with a sentence, and without harm to their neighbours."""

import dataclasses
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from handlers.catalogue import Catalogue
from handlers.errors import ModelError
from handlers.hardware.device import release_memory
from handlers.stable_diffusion import CombinedHandler
from handlers.wire import DESCRIBE
from tests.support.frontend import Context, Frontend


def test_a_bad_request_fails_alone(frontend: Frontend) -> None:
    good, bad = frontend.send(num_inference_steps=2), frontend.send(seed="x")
    nowhere = frontend.send("sketch")
    late = frontend.send(headers={"X-Deadline": "soon"})
    frontend.run()
    assert frontend.result(good)["status"] == "success"
    assert frontend.messages(bad)[-1]["error"]["status"] == 400
    assert "X-Task" in frontend.messages(nowhere)[-1]["error"]["message"]
    assert "X-Deadline" in frontend.messages(late)[-1]["error"]["message"]


def test_a_description_that_fails_fails_alone(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    neighbour = frontend.send(num_inference_steps=2)
    frontend.tick()
    fail = Mock(side_effect=OSError("the folder of models is gone"))
    with monkeypatch.context() as patch:
        patch.setattr("handlers.worker.Worker.describe", fail)
        name = frontend.send(DESCRIBE)
        frontend.run_until(lambda: name not in frontend.open)
    error = frontend.messages(name)[-1]["error"]
    assert error == {"status": 500, "message": "This is a fault of the server; its log has the cause."}
    again = frontend.send(DESCRIBE)
    frontend.run()
    assert frontend.result(neighbour)["status"] == "success" and frontend.result(again)["models"]


def test_a_deadline_that_has_passed_is_a_504(frontend: Frontend) -> None:
    name = frontend.send(headers={"X-Deadline": str(time.time() - 1)})
    frontend.run()
    assert frontend.messages(name)[-1]["error"]["status"] == 504


@pytest.mark.parametrize(
    ("failure", "status"),
    [(lambda: torch.empty(10**15), 507), (lambda: bytearray(10**17), 507), (lambda: {}["x"], 500)],
)
def test_what_a_pipeline_raises_ends_its_request_alone(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], Any], status: int
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        failure()

    good = frontend.send(num_inference_steps=3)
    frontend.tick()
    bad = frontend.send(prompt="a prompt that nobody remembers", num_inference_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(frontend.handler.worker.served["txt2img"].pipeline.text_encoder.module, "forward", fail)
        frontend.run_until(lambda: bad not in frontend.open)
    frontend.run()
    assert frontend.messages(bad)[-1]["error"]["status"] == status
    assert frontend.messages(bad)[-1]["error"]["message"] != "x"
    assert frontend.result(good)["status"] == "success"


def test_an_image_without_room_is_refused_and_its_neighbour_generated(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = frontend.handler
    monkeypatch.setattr("handlers.hardware.memory.available_bytes", lambda _: 10 * 2**30)
    neighbour = frontend.send(num_inference_steps=20)
    frontend.run_until(lambda: handler.generations and handler.generations[neighbour].slots)
    shared = handler.worker.shared
    memory = dataclasses.replace(shared.memory, row_bytes=2**30)
    worker = dataclasses.replace(handler.worker, shared=dataclasses.replace(shared, memory=memory))
    monkeypatch.setattr(handler, "worker", worker)
    refused = frontend.send(width=256, height=256)
    frontend.run()
    error = json.loads(frontend.lines[refused][-1])["error"]
    assert error["status"] == 507 and "try 128 x 128" in error["message"]
    assert frontend.result(neighbour)["status"] == "success"


def test_out_of_memory_fails_the_request_that_caused_it_and_gives_the_memory_back(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = frontend.handler
    held: list[weakref.ref[torch.Tensor]] = []  # what the forwards that failed had allocated
    left: list[int] = []

    def release(device: torch.device) -> None:
        release_memory(device)
        left.append(sum(tensor() is not None for tensor in held))

    monkeypatch.setattr("handlers.hardware.memory.release_memory", release)
    monkeypatch.setattr(
        "handlers.engine.generation.logger.disabled", True
    )  # pytest keeps what is logged, with its traceback
    unet = handler.worker.served["txt2img"].pipeline.unet
    forward = unet.forward

    def too_large(sample: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if len(sample) > 1:  # a guided image, alone or with another
            activations = torch.zeros(8)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *arguments, **options)

    monkeypatch.setattr(unet, "forward", too_large)
    with frontend.engine_held():
        greedy = frontend.send(num_inference_steps=3)
        small = frontend.send(num_inference_steps=3, guidance_scale=1)
    frontend.run()
    error = json.loads(frontend.lines[greedy][-1])["error"]
    assert error["status"] == 507 and "try a smaller one" in error["message"]
    assert frontend.result(small)["status"] == "success"
    # before the calls ran one by one, and when the request was gone
    assert len(held) >= 2 and len(left) >= 2 and not any(left)


def test_what_the_pipeline_itself_refuses_is_the_clients_to_change(frontend: Frontend) -> None:
    pipeline = frontend.handler.worker.served["txt2img"].pipeline
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*arguments: Any, **options: Any) -> None:
            raise ValueError("original_steps: 50 is smaller than num_inference_steps: 51")

        patch.setattr(type(pipeline.scheduler), "set_timesteps", refuse)
        name = frontend.send()
        frontend.run()
    error = json.loads(frontend.lines[name][-1])["error"]
    assert error["status"] == 400 and "cannot generate with these values: original_steps: 50" in error["message"]


def test_numbers_that_overflow_are_a_failure_and_no_black_image(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.request.fields.MAX_GUIDANCE", 1e38)  # in half precision, a smaller one overflows
    overflows, good = frontend.send(guidance_scale=1e38, num_inference_steps=4), frontend.send(num_inference_steps=4)
    frontend.run()
    error = json.loads(frontend.lines[overflows][-1])["error"]
    assert error["status"] == 500 and "try a lower guidance_scale" in error["message"]
    assert frontend.result(good)["status"] == "success"


def test_a_fault_in_the_engine_fails_what_is_open_and_the_next_is_generated(
    frontend: Frontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(slots: Any) -> None:
        raise KeyError("a fault")

    name = frontend.send(num_inference_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(frontend.handler.engine.batcher, "step", fail)
        frontend.run()
    assert json.loads(frontend.lines[name][-1])["error"]["status"] == 500
    name = frontend.send(num_inference_steps=2)
    frontend.run()
    assert frontend.result(name)["status"] == "success"


def test_a_model_that_cannot_be_loaded_leaves_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(model=str(tmp_path))
    with pytest.raises(RuntimeError, match=r"has no model_index\.json"):
        CombinedHandler().initialize(context)
    assert not (tmp_path / "told").exists(), "nobody has said where"
    monkeypatch.setenv("SD_CATALOGUE", str(tmp_path / "told"))
    catalogue = Catalogue(tmp_path / "told")
    for error, reason in (
        (ModelError("It is damaged."), "It is damaged."),
        (ValueError("x"), "ValueError: x"),
        (torch.OutOfMemoryError("CUDA out of memory."), "There is not enough memory for this model"),
    ):
        monkeypatch.setattr("handlers.worker.Worker.load", Mock(side_effect=error))
        with pytest.raises(RuntimeError):
            CombinedHandler().initialize(context)
        assert catalogue.failure(context.model_name).startswith(reason)
