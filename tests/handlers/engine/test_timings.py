"""Seconds by stage, on a clock that each look moves on by one second."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from handlers.engine import timings
from handlers.engine.timings import Timings


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(timings, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))


class Faulty(torch.nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a fault")


def test_a_stage_adds_up_though_its_work_fails() -> None:
    measured = Timings()
    with measured.timed("parse"):
        pass
    with pytest.raises(KeyError), measured.timed("parse"):
        raise KeyError
    assert measured.seconds["parse"] == 2.0 and measured.seconds["encode"] == 0.0
    measured.reset()
    assert set(measured.seconds) == {"parse", "text", "unet", "vae", "checker", "encode"}
    assert not any(measured.seconds.values())


def test_the_modules_of_a_pipeline_are_timed_by_stage() -> None:
    def module() -> torch.nn.Module:
        return torch.nn.Identity()

    pipeline = SimpleNamespace(
        text_encoder=module(), text_encoder_2=module(), safety_checker=None,
        vae=SimpleNamespace(encoder=module(), decoder=Faulty()),
    )  # fmt: skip
    measured = Timings()
    measured.watch(pipeline)
    sample = torch.zeros(1)
    for one in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae.encoder):
        one(sample)
    with pytest.raises(RuntimeError, match="a fault"):
        pipeline.vae.decoder(sample)
    assert (measured.seconds["text"], measured.seconds["vae"], measured.seconds["checker"]) == (2.0, 2.0, 0.0)
