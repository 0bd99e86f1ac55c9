"""Bad input through the real server: a sentence for its client, and no harm to its neighbours."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.running import HANG_S, Running
from tests.support.samples import b64, bomb, file_bytes, sample_image

pytestmark = pytest.mark.e2e
MEGABYTE = 1_000_000
INIT = b64(sample_image())


@pytest.fixture
def neighbour(combined: Running) -> Iterator[None]:
    """A request that runs while the test misbehaves, and has to come out unharmed."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(combined.images, "img2img", init_image=INIT, seed=77, num_inference_steps=250)
        yield
        assert future.result()[0]["seed"] == 77


@pytest.mark.parametrize(
    ("task", "fields", "status", "sentence"),
    [
        ("txt2img", {"width": 77}, 400, "nearest is 80"),
        ("txt2img", {"num_outputs": 99}, 400, "num_outputs must be a whole number from 1 to 8"),
        ("txt2img", {"guidance_scale": "nan"}, 400, "guidance_scale must be a number"),
        ("img2img", {}, 400, "init_image is missing"),
        ("img2img", {"init_image": b64(file_bytes(sample_image())[:500])}, 400, "damaged or incomplete"),
        ("img2img", {"init_image": b64(bomb())}, 413, "pixels"),
        ("img2img", {"init_image": INIT, "strength": 2}, 400, "strength must be"),
        ("masking", {"init_image": INIT}, 400, "mask_image is missing"),
        ("txt2img", {f"field{i}": 1 for i in range(20_000)}, 400, "the limit is 100"),
    ],
)
def test_bad_input_is_a_sentence_and_harms_nobody(
    combined: Running, neighbour: None, task: str, fields: dict[str, Any], status: int, sentence: str
) -> None:
    answer = combined.post(task, {"prompt": "x"} | fields)
    assert answer.status_code == status
    assert answer.json()["status"] == "failure" and sentence in answer.json()["message"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"prompt=a&prompt=b", "comes twice"),
        (b"prompt=%zz", "bad percent-escape: write a '%' within a value as %25"),
        (b"prompt", "no '='"),
        (b"", "prompt is missing"),
    ],
)
def test_malformed_bodies(combined: Running, body: bytes, sentence: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = httpx.post(combined.url + "/txt2img", content=body, headers=headers, timeout=HANG_S)
    assert answer.status_code == 400 and sentence in answer.json()["message"]


def test_bodies_over_the_limit_alone_and_together(combined: Running, neighbour: None) -> None:
    answer = httpx.post(combined.url + "/img2img", content=b"x" * (70 * MEGABYTE), timeout=HANG_S)
    assert answer.status_code == 413 and "larger than" in answer.json()["message"]

    def large(_: int) -> httpx.Response:
        body = b"prompt=x&init_image=" + b"A" * (60 * MEGABYTE)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return httpx.post(combined.url + "/img2img", content=body, headers=headers, timeout=HANG_S)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(large, range(8)))
    assert {answer.status_code for answer in answers} <= {413, 429, 503}
    assert any("larger than 33554432 bytes" in answer.json()["message"] for answer in answers)
    for answer in answers:
        assert answer.json()["status"] == "failure"
        assert answer.status_code == 413 or int(answer.headers["retry-after"]) > 0


def test_an_answer_that_could_be_too_large_is_refused(combined: Running) -> None:
    big = b64(sample_image(4000, 4000), "JPEG")
    answer = combined.post("img2img", {"prompt": "x", "init_image": big, "num_outputs": 4})
    assert answer.status_code == 400 and "ask for at most 3" in answer.json()["message"]
