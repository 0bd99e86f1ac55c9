"""What is kept: for how long, how much of it, and whose."""

import pytest

from proxy.errors import Failure
from proxy.kept import GONE, KEEP_S, Kept, KeptImage

IMAGE = KeptImage(b"image", "image/png")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(kept: Kept, name: str, owner: str | None = None) -> int:
    try:
        assert kept.get(name, KeptImage, owner) is IMAGE
    except Failure as failure:
        return failure.status
    return 200


def test_a_value_expires_after_its_end() -> None:
    clock = Clock()
    kept = Kept(9, 9, clock=clock)
    name = kept.add("me", IMAGE, "img_")
    assert len(name) == len("img_") + 32 and kept.expires_in(name) is None
    clock.now = 2 * KEEP_S
    assert status(kept, name) == 200
    kept.end(name, 5)
    assert kept.expires_in(name) == KEEP_S and kept.bytes_held == 5
    clock.now += KEEP_S
    assert status(kept, name) == 410 and kept.bytes_held == 0 and kept.expires_in(name) is None


def test_it_belongs_to_its_owner() -> None:
    clock = Clock()
    kept = Kept(9, 9, clock=clock)
    name = kept.add("me", IMAGE, "img_")
    assert [status(kept, name, owner) for owner in ("me", "you", None)] == [200, 404, 200]
    assert kept.of("me", KeptImage) == [IMAGE] and not kept.of("you", KeptImage) and not kept.of("me", str)
    with pytest.raises(Failure, match="There is no"):
        kept.get(name, str)
    kept.end(name, 1)
    clock.now = KEEP_S
    assert [status(kept, name, owner) for owner in ("me", "you", None)] == [410, 404, 410]
    assert status(kept, "img_unknown") == 404


def test_what_there_is_no_room_for() -> None:
    kept = Kept(3, 10)
    mine = [kept.add("me", IMAGE, "") for _ in range(2)]
    yours = kept.add("you", IMAGE, "")
    with pytest.raises(Failure, match="3 jobs are open") as error:
        kept.add("you", IMAGE, "")
    assert error.value.status == 429
    for name in (*mine, yours):
        kept.end(name, 3)
    # the oldest of who has most goes
    third = kept.add("you", IMAGE, "")
    assert [status(kept, name) for name in (*mine, yours, third)] == [410, 200, 200, 200]
    kept.end(third, 6)
    assert [status(kept, name) for name in (mine[1], yours, third)] == [410, 200, 200]
    with pytest.raises(Failure, match="ask for fewer"):
        kept.check(11)


def test_expired_ids_are_forgotten_in_the_end() -> None:
    kept = Kept(1, 1)
    names = []
    for _ in range(GONE + 2):
        names.append(kept.add("me", IMAGE, ""))
        kept.end(names[-1], 0)
    assert [status(kept, name) for name in (names[0], names[1], names[-1])] == [404, 410, 200]


def test_ids_name_the_server_that_has_them() -> None:
    kept = Kept(1, 1, "node1")
    name = kept.add("me", IMAGE, "img_")
    assert name.startswith("img_node1_") and len(name) == len("img_node1_") + 32 and status(kept, name) == 200
    elsewhere, gone = "img_node2_" + 32 * "0", "img_node1_" + 32 * "0"
    for unknown, sentence in [
        (elsewhere, "server 'node2'"), (gone, "There is no"), ("x", "no 'x'"), ("order_2024_17", "no 'order_2024_17'"),
    ]:  # fmt: skip
        with pytest.raises(Failure, match=sentence):
            kept.get(unknown, KeptImage)
