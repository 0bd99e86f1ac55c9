"""Several orders of one request, one after the other."""

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

import pytest

from handlers.wire import Progress, Result
from proxy.admission import Queued
from proxy.errors import Failure
from proxy.generating import Order, _joined

pytestmark = pytest.mark.anyio

TWO = [partial(Order.of, "img2img", "x", {"prompt": name}) for name in "12"]


async def told(*steps: int, body: bytes = b"") -> list[Any]:
    """What is told of three orders with so many steps each."""
    left = iter(steps)

    async def events(_: Order) -> AsyncGenerator[Queued | Progress | Result, None]:
        of = next(left)
        for step in (1, of):
            yield Progress(step, of)
        yield Result(body or Result.of_images([b'{"seed": %d}' % of], ["Doubtful."]).body)

    return [event async for event in _joined(Order("img2img", "x", b"", "", others=TWO), events)]


async def test_their_steps_count_on() -> None:
    *steps, result = await told(4, 4, 2)
    assert [(event.step, event.of) for event in steps] == [(1, 12), (4, 12), (5, 12), (8, 12), (9, 10), (10, 10)]
    assert result.body == Result.of_images([b'{"seed": 4}', b'{"seed": 4}', b'{"seed": 2}'], ["Doubtful."]).body


async def test_too_much_for_one_answer_is_refused() -> None:
    with pytest.raises(Failure, match="too large for one answer"):
        await told(1, 1, 1, body=b"x" * 60_000_000)


async def test_a_refusal_says_which_image_it_was() -> None:
    made = []

    async def events(order: Order) -> AsyncGenerator[Queued | Progress | Result, None]:
        made.append(order)
        if len(made) == 3:
            raise Failure(400, "init_image is damaged: send it again.")
        yield Result.of_images([b"{}"], [])

    with pytest.raises(Failure) as told:
        _ = [event async for event in _joined(Order("img2img", "x", b"", "", others=TWO), events)]
    assert told.value.message == "init_image is damaged: send it again. That was number 3 of 3 images."
