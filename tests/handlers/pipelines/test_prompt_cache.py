from typing import Any

import torch

from handlers.pipelines.prompt_cache import ENTRIES, RememberingEncoder


class Encoder:
    dtype = torch.float16

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, ids: torch.Tensor, **options: Any) -> tuple[int]:
        self.calls += 1
        return (self.calls,)


def test_the_same_tokens_get_the_same_output() -> None:
    encoder = Encoder()
    remembering = RememberingEncoder(encoder)
    ids = torch.tensor([[1, 2, 3]])
    assert remembering(ids, attention_mask=None) is remembering(ids.clone(), attention_mask=None)
    others: list[tuple[torch.Tensor, Any]] = [
        (torch.tensor([[1, 2, 4]]), None),
        (torch.tensor([[1], [2], [3]]), None),
        (ids, torch.ones(1, 3)),
        (ids, torch.zeros(1, 3)),
    ]
    for other, mask in others:
        assert remembering(other, attention_mask=mask) != (1,)
    assert encoder.calls == 5
    assert remembering(ids, attention_mask=None) == (1,)
    assert remembering.dtype == torch.float16  # all else is the encoder's


def test_the_oldest_is_forgotten() -> None:
    encoder = Encoder()
    remembering = RememberingEncoder(encoder)
    for i in range(ENTRIES + 1):
        remembering(torch.tensor([[i]]))
        remembering(torch.tensor([[0]]))  # asked for all the time
    assert remembering(torch.tensor([[0]])) == (1,)
    before = encoder.calls
    remembering(torch.tensor([[1]]))
    assert encoder.calls == before + 1
