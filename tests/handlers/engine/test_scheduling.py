"""The scheduler by itself: which calls run next, and what is left of a call that failed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from handlers.engine.scheduling import Credits, Outcome, Slot, schedule, take_turn, together_or_alone
from handlers.forward.calls import DenoiserCall

AREA = 8 * 8  # latent pixels of an image of native size


@dataclass
class Request:
    last_step: int = 0


@dataclass
class Job:
    call: DenoiserCall | None


def double(sample: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
    """A UNet whose rows tell of their own timestep."""
    return (sample * 2 + timestep.reshape(-1, 1, 1, 1),)


def call(rows: int = 2, size: int = 8, timestep: float = 1.0, unet: Any = double, **kwargs: Any) -> DenoiserCall:
    return DenoiserCall(unet, torch.ones(rows, 4, size, size), torch.tensor(timestep), kwargs)


def slot(owner: Request | None = None, **kwargs: Any) -> Slot:
    return Slot(Job(call(**kwargs)), owner or Request())  # type: ignore[arg-type]


def turns(slots: list[Slot], count: int, max_rows: int = 32) -> list[list[Slot]]:
    """The slots that some steps choose, one after the other."""
    taken = []
    for step in range(1, count + 1):
        chosen = schedule(slots, max_rows, AREA)
        for one in chosen:
            one.last_step = one.owner.last_step = step
        taken.append(chosen)
    return taken


def test_the_request_that_waited_longest_goes_first_and_none_starves() -> None:
    slots = [slot() for _ in range(33)]
    served = [one for chosen in turns(slots, 17, max_rows=4) for one in chosen]
    assert len(served) == 34 and set(map(id, served)) == set(map(id, slots))


def test_a_request_of_many_images_takes_turns_with_a_request_of_one() -> None:
    many, one = Request(), Request()
    slots = [*(slot(many) for _ in range(8)), slot(one)]
    turns(slots, 4, max_rows=4)
    assert slots[-1].last_step >= 3
    assert len({each.last_step for each in slots[:8]}) > 1


def test_two_shapes_alternate() -> None:
    small, large = slot(size=8), slot(size=16)
    assert turns([small, large], 4) == [[small], [large], [small], [large]]


def shared_turns(slots: list[Slot], count: int) -> list[list[Slot]]:
    """As `turns`, with the credit of one turn in the next."""
    taken: list[list[Slot]] = []
    credits: Credits = {}
    for step in range(1, count + 1):
        chosen, credits = take_turn(slots, credits)
        for one in chosen:
            one.last_step = one.owner.last_step = step
        taken.append(chosen)
    return taken


def test_a_large_image_takes_the_time_of_small_ones_and_not_their_turns() -> None:
    small, large = slot(size=8), slot(size=32)
    taken = shared_turns([large, small], 51)
    assert taken.count([large]) == 3 and taken.count([small]) == 48  # a call of the large one costs 16 of the others
    gaps = [step for step, chosen in enumerate(taken) if chosen == [large]]
    assert gaps[1] - gaps[0] == gaps[2] - gaps[1] == 17  # and it waits for no longer


def test_images_of_one_size_have_equal_turns_however_many_share_a_call() -> None:
    together, alone = [slot() for _ in range(8)], slot(eta=0.5)
    assert shared_turns([*together, alone], 6) == [together, [alone]] * 3


def test_who_comes_later_has_no_credit_from_before() -> None:
    small, large = slot(size=8), slot(size=16)
    _, credits = take_turn([small, large], {})
    assert sorted(credits.values()) == [0, 2 * AREA]
    assert take_turn([small], credits) == ([small], {})


@pytest.mark.parametrize(("size", "expected"), [(8, 4), (16, 1), (64, 1)])
def test_larger_images_fill_a_forward_sooner(size: int, expected: int) -> None:
    assert len(schedule([slot(size=size) for _ in range(6)], max_rows=8, native_area=AREA)) == expected


def test_without_a_call_nothing_is_chosen() -> None:
    assert schedule([], max_rows=8, native_area=AREA) == []


class Memory:
    def __init__(self) -> None:
        self.releases = 0

    def release(self) -> None:
        self.releases += 1


@pytest.mark.parametrize(("error", "releases"), [(torch.OutOfMemoryError("no room"), 1), (ValueError("a fault"), 0)])
def test_after_a_failure_each_runs_alone_and_one_keeps_its_error(error: Exception, releases: int) -> None:
    good, bad, memory = slot(), slot(), Memory()

    def run(slots: Sequence[Slot]) -> list[Outcome]:
        if bad in slots:
            raise error
        return [(one, "output") for one in slots]

    assert together_or_alone([good, bad], run, memory) == [(good, "output"), (bad, error)]  # type: ignore[arg-type]
    assert memory.releases == releases
