"""What is asked for: seeded lists of requests, so that everybody gets the same ones, and when they arrive."""

import random
from dataclasses import dataclass
from typing import Any

from handlers.wire import TASKS
from tests.support.samples import b64, half_mask, sample_image

GUIDANCE = 3.5
SIZES, STEPS = (96, 128, 192), (5, 10, 20)  # of the mixed list
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
THINGS = ("apple", "car", "house", "tree", "cat", "boat", "cup", "bird")


@dataclass(frozen=True)
class Request:
    """The task and the fields of a JSON body."""

    task: str
    fields: dict[str, Any]


def text_to_image(size: int, steps: int, number: int) -> Request:
    """Each number has a prompt and a seed of its own: nobody gains from having encoded the prompt before."""
    return Request(
        "txt2img",
        {
            "prompt": f"a {COLOURS[number % len(COLOURS)]} apple, number {number}", "seed": number + 1,
            "num_inference_steps": steps, "guidance_scale": GUIDANCE, "width": size, "height": size,
        },
    )  # fmt: skip


def uniform(count: int, size: int, steps: int) -> list[Request]:
    return [text_to_image(size, steps, number) for number in range(count)]


def mixed(count: int) -> list[Request]:
    """Every task, with sizes and step counts as they come."""
    chance = random.Random(1)
    requests = []
    for number in range(count):
        task, size = chance.choice(TASKS), chance.choice(SIZES)
        fields: dict[str, Any] = {
            "prompt": f"a {chance.choice(COLOURS)} {chance.choice(THINGS)}", "seed": number + 1,
            "num_inference_steps": chance.choice(STEPS), "guidance_scale": GUIDANCE,
        }  # fmt: skip
        if task == "txt2img":
            fields |= {"width": size, "height": size}
        else:
            fields |= {"init_image": b64(sample_image(size, size, seed=number)), "strength": 0.7}
        if task == "masking":
            fields["mask_image"] = b64(half_mask(size, size))
        requests.append(Request(task, fields))
    return requests


def arrivals(count: int, rate: float) -> list[float]:
    """Poisson arrivals in seconds from the start, of which `count` fall into `count / rate` seconds.

    Given their number they are spread evenly, so a short list has the rate that it is to have. Every rate has the
    same pattern.
    """
    chance = random.Random(2)
    return sorted(chance.uniform(0, count / rate) for _ in range(count))
