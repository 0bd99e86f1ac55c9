"""What fits on a device that reports what the test says."""

import dataclasses

import pytest
import torch

from handlers.errors import OutOfMemory
from handlers.hardware import memory
from handlers.hardware.memory import Memory, no_room
from handlers.request.fields import GenerationRequest

CUDA = torch.device("cuda", 0)
GIB = 2**30
# 512 pixels: a row takes half a GiB, decoding two
MEASURED = Memory(CUDA, native_area=64 * 64, row_bytes=GIB // 2, image_bytes=2 * GIB)


def a_request(side: int) -> GenerationRequest:
    return GenerationRequest(
        task="txt2img", prompt="", negative_prompt="", seed=1, num_outputs=1, num_inference_steps=20,
        guidance_scale=7.5, eta=0.0, width=side, height=side, answer_size=(side, side),
    )  # fmt: skip


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    holder: list[int | None] = [4 * GIB]
    monkeypatch.setattr(memory, "available_bytes", lambda _: holder[0])
    return holder


def test_rows_of_a_forward_follow_what_is_free(free: list[int | None]) -> None:
    assert MEASURED.rows() == 7
    free[0] = GIB
    assert MEASURED.rows() == 1
    free[0] = 0
    assert MEASURED.rows() == 1  # one call always runs: it may fit after all
    free[0] = None
    assert MEASURED.rows() is None


def test_an_image_without_room_is_refused_with_one_that_has_it(free: list[int | None]) -> None:
    MEASURED.admit(a_request(512), 8)
    with pytest.raises(OutOfMemory, match=r"1024 x 1024 pixels needs 8\.0 GiB .* 4\.0 GiB are free: try 640 x 640"):
        MEASURED.admit(a_request(1024), 8)
    MEASURED.admit(a_request(640), 8)
    free[0] = None
    MEASURED.admit(a_request(1024), 8)


def test_guidance_that_is_an_input_or_a_second_call_needs_one_row(free: list[int | None]) -> None:
    free[0] = GIB
    one_row = Memory(CUDA, native_area=64 * 64, row_bytes=GIB, guided_rows=1)
    one_row.admit(a_request(512), 8)
    with pytest.raises(OutOfMemory, match=r"512 x 512 pixels needs 2\.0 GiB"):
        dataclasses.replace(one_row, guided_rows=2).admit(a_request(512), 8)


def test_a_smaller_size_is_not_suggested_for_a_model_that_generates_at_its_own(free: list[int | None]) -> None:
    with pytest.raises(OutOfMemory, match=r"GiB are free: the model always generates at this size, so free memory"):
        MEASURED.admit(a_request(1024), 8, fixed_size=True)


@pytest.mark.parametrize(
    ("num_outputs", "fixed_size", "advice"),
    [
        (2, False, "try a smaller one, or a lower num_outputs."),
        (1, False, "try a smaller one."),
        (2, True, "try a lower num_outputs."),
        (1, True, "free some on the device, or serve a smaller model."),
    ],
)
def test_where_memory_ran_out_the_sentence_says_what_helps(num_outputs: int, fixed_size: bool, advice: str) -> None:
    request = dataclasses.replace(a_request(512), num_outputs=num_outputs)
    assert no_room(request, fixed_size).message == f"There is not enough memory for this image: {advice}"


def test_where_decoding_runs_beside_a_forward_there_must_be_room_for_both(free: list[int | None]) -> None:
    needed = 2 * MEASURED.row_bytes + MEASURED.image_bytes
    free[0] = needed - 1
    MEASURED.admit(a_request(512), 8)
    beside = dataclasses.replace(MEASURED, decodes_beside=True)
    with pytest.raises(OutOfMemory):
        beside.admit(a_request(512), 8)
    free[0] = needed
    beside.admit(a_request(512), 8)


def test_without_a_measurement_everything_is_let_in(free: list[int | None]) -> None:
    unmeasured = dataclasses.replace(MEASURED, row_bytes=0, image_bytes=0)
    assert unmeasured.rows() is None
    unmeasured.admit(a_request(4096), 8)
