"""Jobs on the stock pipelines of the embedded model."""

from typing import Any

import numpy as np
import pytest
import torch

from handlers.engine.pipeline_job import Cancelled, PipelineJob
from handlers.forward.calls import DecodeCall, DenoiserCall
from handlers.forward.merging import forward
from tests.support.samples import half_mask, sample_image

EXTRA: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": {"image": sample_image(), "strength": 0.5},
    "masking": {"image": sample_image(), "mask_image": half_mask(), "strength": 0.9, "width": 64, "height": 64},
}


def arguments(task: str, seed: int = 5, steps: int = 4) -> dict[str, Any]:
    return {
        "prompt": "a red apple",
        "num_inference_steps": steps,
        "guidance_scale": 3.5,
        "generator": torch.Generator().manual_seed(seed),
    } | EXTRA[task]


def run(job: PipelineJob) -> Any:
    job.start()
    while job.call is not None:
        job.advance(forward(job.call))
    if job.error is not None:
        raise job.error
    return job.result


@pytest.mark.parametrize("task", EXTRA)
def test_a_job_generates_the_very_image_of_the_stock_pipeline(pipelines: dict[str, Any], task: str) -> None:
    expected = pipelines[task](**arguments(task))
    result = run(PipelineJob(pipelines[task], arguments(task)))
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(expected.images[0]))
    assert result.nsfw_content_detected == expected.nsfw_content_detected


def test_jobs_that_take_turns_do_not_disturb_each_other(pipelines: dict[str, Any]) -> None:
    expected = [pipelines["txt2img"](**arguments("txt2img", seed)).images[0] for seed in (1, 2)]
    jobs = [PipelineJob(pipelines["txt2img"], arguments("txt2img", seed)) for seed in (1, 2)]
    for job in jobs:
        job.start()
    while any(job.call for job in jobs):
        for job in jobs:
            if job.call is not None:
                job.advance(forward(job.call))
    for job, image in zip(jobs, expected, strict=True):
        assert np.array_equal(np.asarray(job.result.images[0]), np.asarray(image))


def test_steps_are_counted_from_the_pipeline_and_not_from_the_field(pipelines: dict[str, Any]) -> None:
    job = PipelineJob(pipelines["img2img"], arguments("img2img", steps=10))
    assert not job.started and job.has_image
    job.start()
    assert job.total_steps == 5  # strength 0.5 of 10
    for _ in range(5):
        assert isinstance(job.call, DenoiserCall)
        job.advance(forward(job.call))
    assert isinstance(job.call, DecodeCall) and job.steps_done == 5
    job.cancel()


def test_cancel_ends_the_pipeline(pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    unwound = []
    stock_call = type(pipelines["txt2img"]).__call__

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return stock_call(*args, **kwargs)
        except BaseException as error:
            unwound.append(type(error))
            raise

    monkeypatch.setattr(type(pipelines["txt2img"]), "__call__", call)
    job = PipelineJob(pipelines["txt2img"], arguments("txt2img"))
    job.start()
    job.cancel()
    assert job.ended and job.call is None and job.error is None and unwound == [Cancelled]
    job.cancel()  # a second time does nothing


def test_jobs_leave_the_owners_grad_mode_alone_in_whatever_order_they_end(pipelines: dict[str, Any]) -> None:
    assert torch.is_grad_enabled()
    jobs = [PipelineJob(pipelines["txt2img"], arguments("txt2img")) for _ in range(3)]
    for job in jobs:
        job.start()
        assert torch.is_grad_enabled()
    jobs[0].cancel()
    while jobs[1].call is not None:
        jobs[1].advance(forward(jobs[1].call))
    assert torch.is_grad_enabled()
    assert jobs[2].call is not None
    jobs[2].advance(forward(jobs[2].call))
    assert jobs[2].call is not None and not jobs[2].call.sample.requires_grad
    jobs[2].cancel()


def test_a_job_that_was_never_started_can_be_cancelled(pipelines: dict[str, Any]) -> None:
    job = PipelineJob(pipelines["txt2img"], arguments("txt2img"))
    job.cancel()
    assert job.ended


def test_what_the_pipeline_raises_is_kept(pipelines: dict[str, Any]) -> None:
    job = PipelineJob(pipelines["txt2img"], arguments("txt2img") | {"prompt": 3})
    job.start()
    assert job.ended and isinstance(job.error, ValueError) and job.call is None


def test_the_shared_pipeline_is_left_as_it_was(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["txt2img"]
    unet, scheduler = pipeline.unet, pipeline.scheduler
    scheduler.set_timesteps(33)
    run(PipelineJob(pipeline, arguments("txt2img")))
    assert pipeline.unet is unet and pipeline.scheduler is scheduler and scheduler.num_inference_steps == 33


def test_off_the_cpu_a_timestep_is_made_there_and_not_copied() -> None:
    """A copy would wait for the GPU; the meta device, which holds no numbers, takes its place."""
    asked: list[torch.Tensor] = []
    call = DenoiserCall(lambda sample, timestep: asked.append(timestep), torch.ones(2, 4, 8, 8, device="meta"),
                    torch.tensor(7.5), {})  # fmt: skip
    call.run()
    assert (asked[0].device.type, tuple(asked[0].shape), asked[0].dtype) == ("meta", (2,), torch.float32)
    on_cpu = DenoiserCall(None, torch.ones(2, 4, 8, 8), torch.tensor(7.5), {}).with_timesteps().timestep
    assert on_cpu.tolist() == [7.5, 7.5]
