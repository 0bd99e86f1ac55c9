"""What `torch.cuda` says and does of a fake device: its streams, events and graphs, and its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves

from tests.support.fake_cuda import Card, fake_cuda

FREE, TOTAL = 8 * 2**30, 24 * 2**30  # bytes
NEEDED = 2**20  # of every piece of work that is measured, in bytes


@contextmanager
def fake_gpu() -> Iterator[Card]:
    """A fake device that the whole of `torch.cuda` knows of, as a worker looks for it."""
    with fake_cuda() as card, mock.patch.multiple(torch.cuda, **_functions(card)):
        yield card


def _functions(card: Card) -> dict[str, Any]:
    class Event:
        """Done when it has been asked `card.late` times."""

        def __init__(self, stream: Any) -> None:
            self._stream, self._asked = stream, 0

        def query(self) -> bool:
            self._asked += 1
            return self._asked > card.late

        def synchronize(self) -> None:
            if not self.query():
                card.wait("an event")
            card.arrive()

    class Stream:
        def __init__(self, device: Any = None) -> None:
            self.device = device

        def wait_stream(self, other: Any) -> None:
            pass

        def record_event(self) -> Event:
            return Event(self)

    @contextmanager
    def stream(wanted: Any) -> Iterator[None]:
        before, card.stream = card.stream, wanted
        try:
            yield
        finally:
            card.stream = before

    class Graph:
        """Repeats the operations of its capture on the very same tensors."""

        def __init__(self) -> None:
            self.tape: list[Any] = []
            self.is_captured = False

        def pool(self) -> Any:
            assert self.is_captured, "the pool of a graph that was not captured"
            return self

        def replay(self) -> None:
            for function, args, kwargs, results in self.tape:
                given = {_memory(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and _memory(old) not in given:  # neither a view nor in place
                        old.copy_(new)

    @contextmanager
    def graph(captured: Graph, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        assert card.tape is None and capture_error_mode == "thread_local"
        card.tape = captured.tape
        try:
            yield
            captured.is_captured = True
        finally:
            card.tape = None

    def nothing(*_: Any) -> None:
        pass

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda _: "NVIDIA GeForce RTX 3060",
        "get_device_capability": lambda _: (8, 6),
        "mem_get_info": lambda _: (FREE, TOTAL),
        "memory_reserved": lambda _: 0,
        "memory_allocated": lambda _: 0,
        "max_memory_allocated": lambda _: NEEDED,
        "reset_peak_memory_stats": nothing,
        "empty_cache": nothing,
        "synchronize": lambda *_: card.wait("synchronize"),
        "current_stream": lambda device=None: card.stream or Stream(device),
        "Event": Event,
        "Stream": Stream,
        "stream": stream,
        "CUDAGraph": Graph,
        "graph": graph,
    }


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
