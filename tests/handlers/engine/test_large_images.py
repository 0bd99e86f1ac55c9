"""Requests with large images beside small ones, and the room that they share."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from handlers.engine import generation, large_images, parsing
from handlers.engine.large_images import LargeImage, LargeImages
from handlers.hardware.heap import trim_heap
from tests.support.frontend import Frontend
from tests.support.running import HANG_S
from tests.support.samples import b64, decode, sample_image


@pytest.fixture
def images() -> LargeImages:
    return LargeImages(max_pixels=100)


def test_they_are_read_while_there_is_room(images: LargeImages) -> None:
    first = images.read(60, lambda: "first")
    assert first.reading.result(HANG_S) == "first"
    second = images.read(60, lambda: "second")
    assert images.write(lambda: "written").result(HANG_S) == "written" and not second.reading.done()
    first.end()
    assert second.reading.result(HANG_S) == "second"
    second.end()
    second.end()
    assert images.held == 0


def test_memory_goes_back_once_there_is_none_for_a_while(images: LargeImages, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = threading.Semaphore(0)
    monkeypatch.setattr(large_images, "REST_S", 0.01)
    monkeypatch.setattr(large_images, "trim_heap", trimmed.release)
    first, second = images.read(40, lambda: None), images.read(40, lambda: None)
    for image in (first, second):
        image.reading.result(HANG_S)
    first.end()
    assert not trimmed.acquire(timeout=0.1)  # the second one is still there
    second.end()
    second.end()
    assert trimmed.acquire(timeout=HANG_S) and not trimmed.acquire(timeout=0.1)


def test_the_heap_is_trimmed_wherever_it_can_be() -> None:
    trim_heap()


def test_one_that_is_larger_than_the_room_is_read_alone(images: LargeImages) -> None:
    huge = images.read(1000, lambda: "huge")
    assert huge.reading.result(HANG_S) == "huge"
    huge.end()
    assert images.held == 0


def test_one_that_ends_while_it_waits_takes_no_room(images: LargeImages) -> None:
    first = images.read(60, lambda: None)
    waits, behind = images.read(60, lambda: None), images.read(30, lambda: "behind")
    first.reading.result(HANG_S)
    waits.end()
    with pytest.raises(CancelledError):
        waits.reading.result(HANG_S)
    assert behind.reading.result(HANG_S) == "behind" and images.held == 90


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every image of more than 64 x 64 pixels is large."""
    monkeypatch.setattr(parsing, "LARGE", 64 * 64)
    yield


def test_a_small_request_does_not_wait_for_large_ones(
    frontend: Frontend, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, go_on = LargeImage.read, threading.Event()
    monkeypatch.setattr(LargeImage, "read", lambda self, *work: (go_on.wait(HANG_S), read(self, *work))[1])
    photograph = {"init_image": b64(sample_image(128, 96)), "num_inference_steps": 2, "strength": 1, "seed": 1}
    names = [frontend.send("img2img", **photograph) for _ in range(4)]
    small = frontend.send("img2img", init_image=b64(sample_image(64, 64)), num_inference_steps=2, strength=1)
    frontend.run_until(lambda: small not in frontend.open)
    assert frontend.order == [small]
    frontend.leave(names[3])
    go_on.set()
    frontend.run()
    assert [decode(frontend.result(name)["images"][0]).shape for name in names[:3]] == [(96, 128, 3)] * 3
    frontend.run_until(lambda: not frontend.handler.worker.shared.large.held)


def test_what_is_wrong_with_a_large_image_is_said(frontend: Frontend, large: None) -> None:
    damaged = b64(sample_image(128, 128))[:-200]
    name = frontend.send("img2img", init_image=damaged)
    frontend.run()
    assert "damaged or incomplete" in frontend.messages(name)[-1]["error"]["message"]
    assert not frontend.handler.worker.shared.large.held


@pytest.mark.parametrize("fields", [{}, {"init_image": b64(sample_image(128, 96))[:-200]}, {"scheduler": "none"}])
def test_no_image_stays_in_memory_until_a_garbage_collection(
    frontend: Frontend, large: None, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = generation.Generation.start, []
    monkeypatch.setattr(
        generation.Generation, "start", lambda self, *given: (started.append(weakref.ref(self)), start(self, *given))
    )
    gc.disable()
    try:
        image = {"init_image": b64(sample_image(128, 96))}
        frontend.send("img2img", **image | fields, num_inference_steps=2, strength=1)
        frontend.run()
        frontend.run_until(lambda: started[0]() is None)
    finally:
        gc.enable()
