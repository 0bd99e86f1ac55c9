"""The merged forward of the denoiser as CUDA graphs: a GPU runs it without waiting for Python to launch its kernels.

A graph has fixed shapes, so the rows are padded to one of SIZES. A graph is captured when its shape comes for the
second time (docs/devices.md).
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch

from handlers.forward.calls import DenoiserCall
from handlers.forward.merging import forward, merge
from handlers.forward.signature import CallSignature

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32)  # rows
Key = tuple[CallSignature, int]  # and the number of rows that the graph has
MAX_GRAPHS = 32  # each has its own inputs and output; everything in between is shared


class Graph(Protocol):
    """Work that is captured once and then repeated on the same tensors."""

    def capture(self, work: Callable[[], Any]) -> Any:
        """Runs `work`, records what it does on the device, and returns what it returns."""

    def replay(self) -> None:
        """Repeats it with the present contents of its input tensors, into the tensors that it returned."""


class CudaGraph:
    """A CUDA graph. Graphs that share their memory overwrite each other's output with each replay.

    Args:
        shares_with: a captured graph whose memory this one uses too. torch frees a pool with its last graph and fails
            for its old handle, so the handle is taken from a graph that is alive, and never kept.
    """

    def __init__(self, shares_with: "CudaGraph | None" = None) -> None:
        self._shares_with = shares_with
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Any]) -> Any:
        torch.cuda.synchronize()
        pool = self._shares_with._graph.pool() if self._shares_with else None
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        self._graph.replay()


class GraphedForward:
    """Stands in for `merging.forward`. A call that cannot be captured runs without a graph."""

    def __init__(self, make_graph: Callable[[Any], Graph] = CudaGraph) -> None:
        self._make_graph = make_graph
        self._captured: dict[Key, _Captured | None] = {}  # None: it could not be captured
        self._seen: set[Key] = set()

    def __call__(self, call: DenoiserCall) -> Any:
        key = _graph_key(call)
        if key is None:
            return forward(call)
        captured = self._captured.get(key)
        if key not in self._captured and key in self._seen:
            captured = self._capture(key, call)
        if captured is not None:
            return captured.run(call)
        if len(self._seen) < 10 * MAX_GRAPHS:
            self._seen.add(key)
        return forward(call)

    @property
    def captures(self) -> int:
        """How many graphs there are."""
        return sum(captured is not None for captured in self._captured.values())

    def prepare(self, call: DenoiserCall, max_rows: int) -> None:
        """Captures the shape of `call` for every size up to `max_rows`, before any request waits for it."""
        for size in SIZES:
            if call.rows <= size <= max_rows and size % call.rows == 0:
                repeated = merge([call] * (size // call.rows))
                self(repeated)
                self(repeated)

    def _capture(self, key: Key, call: DenoiserCall) -> "_Captured | None":
        captured = None
        if len(self._captured) < MAX_GRAPHS:
            try:
                shares_with = next((other.graph for other in self._captured.values() if other is not None), None)
                captured = _Captured(call, key[1], self._make_graph(shares_with))
            except Exception:  # a model that cannot be captured runs all the same
                logger.exception("A CUDA graph of the denoiser could not be captured: it runs without one.")
        self._captured[key] = captured
        return captured


class _Captured:
    """A graph with its input and output tensors, of `size` rows."""

    def __init__(self, call: DenoiserCall, size: int, graph: Graph) -> None:
        self.graph = graph
        self._inputs = _filled_up(call, size)
        self._output = graph.capture(lambda: forward(self._inputs))

    def run(self, call: DenoiserCall) -> Any:
        rows = call.rows
        for held, given in zip(self._inputs.tensors(), call.with_timesteps().tensors(), strict=True):
            held[:rows].copy_(given)
        self.graph.replay()
        sample = self._output[0][:rows].clone()  # the next replay overwrites it
        return (sample,) if isinstance(self._output, tuple) else type(self._output)(sample=sample)


def _graph_key(call: DenoiserCall) -> Key | None:
    """The key of a call's graph; None for a call that no graph fits, as one with adapters, which come and go."""
    signature, size = CallSignature.of(call), _size(call.rows)
    fits = signature.has_row_tensors_alone and signature.is_by_value and call.adapters is None
    # what a ControlNet makes and adds takes as much memory as all latents of a large batch
    fits = fits and call.predicts and not call.has_stack
    return (signature, size) if fits and size is not None else None


def _size(rows: int) -> int | None:
    return next((size for size in SIZES if size >= rows), None)


def _filled_up(call: DenoiserCall, size: int) -> DenoiserCall:
    """A copy of the call with `size` rows; the missing ones repeat its last row."""
    call = call.with_timesteps()
    missing = size - call.rows
    return call.with_tensors(
        torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]) for tensor in call.tensors()
    )
