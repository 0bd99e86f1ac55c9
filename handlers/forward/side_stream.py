"""What is done beside the steps: on CUDA in a stream of its own, or on the way to the CPU; elsewhere at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a stream; torch.cuda.Event is one."""

    def query(self) -> bool:
        """Whether everything that was queued before it is done."""

    def synchronize(self) -> None:
        """Waits until it is."""


class DoneEvent:
    """The event of a device on which nothing is queued."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class NoSideStream:
    """For a device that works in the order of the calls."""

    def wait(self) -> None:
        pass

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def record(self) -> Event:
        return DoneEvent()


class SideStream:
    """A CUDA stream. The steps' tensors that it reads must be kept until an event: torch would reuse their memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        """Makes it wait for the steps that are queued so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Queues into it everything that is queued within the context."""
        with torch.cuda.stream(self._stream):
            yield

    def record(self) -> Event:
        event: Event = self._stream.record_event()
        return event


def fetch(tensor: torch.Tensor) -> tuple[torch.Tensor, Event]:
    """A copy on the CPU, and the event after which it has its numbers: on CUDA the copy is queued."""
    if tensor.device.type != "cuda":
        return tensor.cpu(), DoneEvent()
    copy = tensor.to("cpu", non_blocking=True)  # into pinned memory, as torch does for such a copy
    event: Event = torch.cuda.current_stream(tensor.device).record_event()
    return copy, event
