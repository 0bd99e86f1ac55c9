"""Which calls are alike, and why two are not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from handlers.forward.adapters import Adapters, Twin
from handlers.forward.calls import DecodeCall, DenoiserCall
from handlers.forward.merging import merge, split
from handlers.forward.signature import CallSignature


def a_unet(*arguments: Any, **options: Any) -> None:
    pass


def call(rows: int = 2, size: int = 8, timestep: float = 1.0, unet: Any = a_unet, **kwargs: Any) -> DenoiserCall:
    return DenoiserCall(unet, torch.ones(rows, 4, size, size), torch.tensor(timestep), kwargs)


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


def test_what_is_one_for_all_rows_is_compared_by_its_content() -> None:
    ids = torch.arange(12.0).reshape(4, 3)
    first, second, third = (CallSignature.of(call(img_ids=own)) for own in (ids, ids.clone(), ids + 1))
    assert first == second != third
    assert not first.has_row_tensors_alone and CallSignature.of(call()).has_row_tensors_alone
    (difference,) = first.differences(third)
    assert difference.startswith("img_ids: float32 (4, 3) with the digest ")
    merged = merge([call(img_ids=ids), call(rows=1, img_ids=ids.clone())])
    assert merged.rows == 3 and merged.kwargs["img_ids"] is ids


def listed(*sizes: tuple[int, int], words: int = 5, **kwargs: Any) -> DenoiserCall:
    """A call with a list of rows, as Z-Image's transformer takes them."""
    texts = [torch.ones(words + row, 16) for row in range(len(sizes))]
    rows = [torch.full((4, 1, *size), float(size[0])) for size in sizes]
    return DenoiserCall(a_unet, rows, torch.full((len(sizes),), 0.5), {"cap_feats": texts, **kwargs}, None, "t")


def test_lists_of_rows_merge_whatever_their_sizes_if_those_are_near() -> None:
    one, other = listed((8, 8), (8, 8)), listed((10, 8), words=70)
    assert CallSignature.of(one) == CallSignature.of(other)
    merged = merge([one, other])
    assert [len(rows) for rows in (merged.sample, merged.timestep, merged.kwargs["cap_feats"])] == [3, 3, 3]
    assert merged.area == 8 * 8 * 2 + 10 * 8
    first, second = split((merged.sample,), [one, other])
    assert [row.shape for row in first[0]] == [row.shape for row in one.sample]
    assert second[0][0] is other.sample[0]
    far = CallSignature.of(listed((16, 16)))
    assert far.differences(CallSignature.of(one)) == [
        "sample: rows of float32 of about 256 latent pixels against rows of float32 of about 64 latent pixels"
    ]
    assert CallSignature.of(listed((8, 8), cap_feats=torch.ones(1, 5, 16))) != CallSignature.of(one)


def test_plain_lists_are_compared_by_their_items() -> None:
    shapes = [CallSignature.of(call(rows=1, img_shapes=[[(1, 4, side)]])) for side in (4, 4, 5)]
    assert shapes[0] == shapes[1] != shapes[2] and shapes[0].is_by_value


def test_a_call_by_name_has_its_latents_and_its_timestep() -> None:
    class Transformer:
        def forward(self, hidden_states: Any, encoder_hidden_states: Any = None, timestep: Any = None) -> None: ...

    latents, time, text = torch.ones(1, 6, 8), torch.tensor([0.5]), torch.ones(1, 3, 2)
    named = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": text}
    for one in (
        DenoiserCall.of(Transformer(), (), named),
        DenoiserCall.of(Transformer(), (latents, text), {"timestep": time}),
    ):
        assert one.sample is latents and one.timestep is time and one.kwargs == {"encoder_hidden_states": text}
        assert one.area == 6 * 4  # a token is 2 x 2 latent pixels


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
