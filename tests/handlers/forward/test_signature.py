"""Which calls are alike, and why two are not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from handlers.forward.adapters import Adapters, Twin
from handlers.forward.calls import DecodeCall, UNetCall
from handlers.forward.signature import CallSignature


def a_unet(*arguments: Any, **options: Any) -> None:
    pass


def call(rows: int = 2, size: int = 8, timestep: float = 1.0, unet: Any = a_unet, **kwargs: Any) -> UNetCall:
    return UNetCall(unet, torch.ones(rows, 4, size, size), torch.tensor(timestep), kwargs)


EMBEDDING = torch.ones(2, 77, 16)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"encoder_hidden_states": torch.zeros(2, 77, 16)}, True),
        ({"encoder_hidden_states": torch.zeros(2, 78, 16)}, False),
        ({"encoder_hidden_states": EMBEDDING.half()}, False),
        ({"encoder_hidden_states": EMBEDDING, "timestep_cond": torch.ones(2, 4)}, False),
        ({"encoder_hidden_states": EMBEDDING, "return_dict": True}, False),
        ({"encoder_hidden_states": EMBEDDING, "added_cond_kwargs": {"text_embeds": torch.ones(2, 5)}}, False),
        ({"encoder_hidden_states": EMBEDDING, "size": 16}, False),
        ({"encoder_hidden_states": EMBEDDING, "unet": lambda *a, **k: None}, False),
        ({"encoder_hidden_states": EMBEDDING, "timestep": 3}, False),
    ],
)
def test_every_argument_takes_part_in_the_signature(other: dict[str, Any], same: bool) -> None:
    assert (CallSignature.of(call(encoder_hidden_states=EMBEDDING)) == CallSignature.of(call(**other))) is same


def test_what_has_no_rows_of_its_own_is_never_merged() -> None:
    odd = {"extra": torch.ones(3)}
    calls = [call(**odd), call(**odd)]
    first, second = map(CallSignature.of, calls)
    assert first != second and "no row for each row" in first.differences(second)[0]


def test_the_log_can_say_why_two_calls_do_not_merge() -> None:
    mine = CallSignature.of(call(encoder_hidden_states=EMBEDDING, added_cond_kwargs={"time_ids": torch.ones(2, 6)}))
    other = CallSignature.of(call(size=16, timestep=3, encoder_hidden_states=torch.ones(2, 154, 16), eta=0.5))
    assert mine.differences(mine) == []
    assert mine.differences(other) == [
        "sample: float32 (rows, 4, 8, 8) against float32 (rows, 4, 16, 16)",
        "timestep: torch.float32 against torch.int64",
        "added_cond_kwargs: {time_ids: float32 (rows, 6)} against absent",
        "encoder_hidden_states: float32 (rows, 77, 16) against float32 (rows, 154, 16)",
        "eta: absent against 0.5",
    ]


def test_calls_with_unlike_adapters_do_not_merge() -> None:
    twin = Twin(torch.nn.Linear(2, 2))
    sets = [(("x", 0.8),), (("x", 0.8), ("y", 1.0)), (("x", 0.7),)]
    plain, *others = (
        CallSignature.of(replace(call(), adapters=adapters))
        for adapters in (None, *(Adapters(twin, weights, f"{weights}") for weights in sets))
    )
    assert len({plain, *others}) == 4
    assert others[0] == CallSignature.of(replace(call(), adapters=Adapters(twin, sets[0], "the same")))
    assert plain.differences(others[0]) == ["adapters: absent against (('x', 0.8),)"]


def test_without_sizes_only_the_sizes_are_gone() -> None:
    small = CallSignature.of(call(encoder_hidden_states=EMBEDDING))
    large = CallSignature.of(call(rows=6, size=16, encoder_hidden_states=torch.ones(6, 154, 16)))
    assert small != large and small.without_sizes() == large.without_sizes()
    flat = CallSignature.of(call(encoder_hidden_states=torch.ones(2, 77)))
    assert small.without_sizes() != flat.without_sizes()
    assert small.without_sizes() != CallSignature.of(call(encoder_hidden_states=EMBEDDING.half())).without_sizes()


def test_what_is_known_by_its_identity_alone_is_not_remembered() -> None:
    assert CallSignature.of(call(scale=2.0, added={"x": None})).is_by_value
    assert not CallSignature.of(call(attention={"processor": object()})).is_by_value


def test_true_is_not_one() -> None:
    assert CallSignature.of(call(flag=True)) != CallSignature.of(call(flag=1))


class AutoencoderKL:
    pass


def test_decodings_merge_whatever_their_generators_are() -> None:
    vae, latents = AutoencoderKL(), torch.ones(1, 4, 8, 8)
    calls = [DecodeCall(vae, latents, {"generator": torch.Generator(), "return_dict": False}) for _ in range(2)]
    first, second = map(CallSignature.of, calls)
    assert first == second
    assert CallSignature.of(DecodeCall(vae, latents, {"return_dict": True})) != first
