"""Prompts that are long or have weights, in requests to a handler."""

from typing import Any

import numpy as np
import pytest

from tests.support.frontend import Frontend
from tests.support.samples import b64, decode, half_mask, sample_image

LONG = " ".join(["apple"] * 90)
IMAGES = {"init_image": b64(sample_image())}
FIELDS: dict[str, dict[str, Any]] = {
    "txt2img": {},
    "img2img": IMAGES,
    "masking": IMAGES | {"mask_image": b64(half_mask())},
}


def generated(frontend: Frontend, task: str = "txt2img", /, **fields: Any) -> dict[str, Any]:
    name = frontend.send(task, seed=3, num_inference_steps=4, **FIELDS[task], **fields)
    frontend.run()
    result: dict[str, Any] = frontend.messages(name)[-1]
    return result


def image(frontend: Frontend, task: str = "txt2img", /, **fields: Any) -> Any:
    return decode(generated(frontend, task, **fields)["result"]["images"][0])


@pytest.mark.parametrize("task", FIELDS)
def test_what_comes_after_the_77th_token_counts(frontend: Frontend, task: str) -> None:
    first, second, again = (image(frontend, task, prompt=f"{LONG} {end}") for end in ("house", "cat", "house"))
    assert np.array_equal(first, again) and not np.array_equal(first, second)


def test_a_negative_prompt_may_be_the_longer_one(frontend: Frontend) -> None:
    first, second = (image(frontend, prompt="a house", negative_prompt=f"{LONG} {end}") for end in ("red", "blue"))
    assert not np.array_equal(first, second)


def test_weights_count_and_escapes_are_text(frontend: Frontend) -> None:
    plain, heavy, escaped = (image(frontend, prompt=text) for text in ("a (b", "a (b:1.5)", r"a \(b"))
    assert not np.array_equal(plain, heavy) and not np.array_equal(plain, escaped)
    assert np.array_equal(image(frontend, prompt="a :)"), image(frontend, prompt=r"a :\)"))


def test_each_image_of_a_request_has_the_whole_prompt(frontend: Frontend) -> None:
    images = generated(frontend, prompt=f"{LONG} cat", num_outputs=2)["result"]["images"]
    assert np.abs(decode(images[0]) - image(frontend, prompt=f"{LONG} cat")).max() <= 2  # those two share forwards
    assert not np.array_equal(*map(decode, images))


def test_requests_of_unlike_lengths_take_turns(frontend: Frontend) -> None:
    prompts = ["a house", f"{LONG} cat", f"{LONG} dog", " ".join([LONG] * 3)]
    alone = [image(frontend, prompt=prompt) for prompt in prompts]
    activity = frontend.handler.engine.batcher.activity
    before = activity.unet_forwards
    with frontend.engine_held():
        names = [frontend.send(prompt=prompt, seed=3, num_inference_steps=4) for prompt in prompts]
    frontend.run()
    assert activity.unet_forwards - before == 3 * 4  # those of one length share theirs
    for name, expected in zip(names, alone, strict=True):
        assert np.abs(decode(frontend.result(name)["images"][0]) - expected).max() <= 2


def test_what_changes_between_steps_is_a_warning(frontend: Frontend) -> None:
    result = generated(frontend, prompt="a [cat|dog]")["result"]
    (warning,) = result["warnings"]
    assert warning.startswith("prompt has [cat|dog]: ")


def test_a_prompt_of_too_many_chunks_is_refused(frontend: Frontend) -> None:
    # as many tokens as the characters that are taken can have
    error = generated(frontend, prompt="a " * 5000)["error"]
    assert error["status"] == 400 and error["message"].startswith("prompt has more than 20 chunks of 75 tokens")
    error = generated(frontend, negative_prompt="(a:99)")["error"]
    assert error["status"] == 400 and error["message"].startswith("negative_prompt has the weight 99: ")


def test_clip_skip_changes_the_image_as_far_as_the_model_has_layers(frontend: Frontend) -> None:
    own, one, two = (image(frontend, prompt="a house", **more) for more in ({}, {"clip_skip": 1}, {"clip_skip": 2}))
    assert not np.array_equal(own, one) and not np.array_equal(one, two)
    assert np.array_equal(one, image(frontend, prompt="a (house:1)", clip_skip=1))
    for task in FIELDS:
        error = generated(frontend, task, clip_skip=3)["error"]
        assert error["status"] == 400
        assert error["message"] == "clip_skip must be a whole number from 0 to 2 for this model, not 3."


def test_tokens_are_counted_chunk_by_chunk(frontend: Frontend) -> None:
    name = frontend.send("count", prompt=f"(a:1.2) <lora:x:1> BREAK {LONG}", negative_prompt="a")
    frontend.run()
    counted = frontend.result(name)
    first, *rest = counted["prompt"]
    assert counted["status"] == "success" and counted["negative_prompt"] == [first] and len(rest) >= 2
    assert all(chunk == 75 for chunk in rest[:-1]) and 0 < rest[-1] <= 75
    long, missing = frontend.send("count", prompt="x" * 10_001), frontend.send("count")
    del frontend.open[missing][1]["prompt"]
    frontend.run()
    assert frontend.messages(long)[-1]["error"]["status"] == 400
    assert "prompt is missing" in frontend.messages(missing)[-1]["error"]["message"]
