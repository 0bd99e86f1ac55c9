"""Where work is queued beside the steps: on CUDA a stream of its own, elsewhere it is done at once.

Not run on a card so far (docs/architecture.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Mark(Protocol):
    """A point in a stream; torch.cuda.Event is one."""

    def query(self) -> bool:
        """Whether all that was queued before it is done."""

    def synchronize(self) -> None:
        """Waits until it is."""


class Reached:
    """The mark where nothing is queued."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class NoSideStream:
    """For a device that works in the order of the calls."""

    def catch_up(self) -> None:
        pass

    @contextmanager
    def beside(self) -> Iterator[None]:
        yield

    def mark(self) -> Mark:
        return Reached()


class SideStream:
    """A CUDA stream. What it reads of the steps' has to be kept until a mark: torch would give its memory away."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def catch_up(self) -> None:
        """Lets it wait for the steps that are queued so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    @contextmanager
    def beside(self) -> Iterator[None]:
        """What is queued within runs in the stream."""
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Mark:
        event: Mark = self._stream.record_event()
        return event
