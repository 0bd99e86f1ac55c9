"""Graphs on the CPU, with a stand-in that repeats what was captured on the very tensors, as a CUDA graph does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from handlers.forward.calls import DenoiserCall
from handlers.forward.cuda_graphs import MAX_GRAPHS, SIZES, GraphedForward
from handlers.forward.merging import forward, merge
from tests.support import tiny_models
from tests.support.jobs import a_request, generated_alone, generated_together, load


class Repeated:
    """Writes each replay into the output of the capture, and counts both."""

    made: list["Repeated"]

    def __init__(self, shares_with: "Repeated | None" = None) -> None:
        self.replays = 0
        self.shares_with = shares_with
        self.made.append(self)

    def capture(self, work: Callable[[], Any]) -> Any:
        self._work, self._output = work, work()
        return self._output

    def replay(self) -> None:
        self.replays += 1
        self._output[0].copy_(self._work()[0])


@pytest.fixture
def graphs() -> GraphedForward:
    Repeated.made = []
    return GraphedForward(Repeated)


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return tiny_models.unet()


def call(unet: Any, rows: int, seed: int, size: int = 8, **kwargs: Any) -> DenoiserCall:
    numbers = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, 77, tiny_models.WIDTH, generator=numbers)
    sample = torch.randn(rows, 4, size, size, generator=numbers)
    options = {"encoder_hidden_states": states, "return_dict": False} | kwargs
    return DenoiserCall(unet, sample, torch.tensor(100 * seed), options)


def test_a_replay_is_what_the_eager_forward_gives_at_the_same_padded_size(graphs: GraphedForward, unet: Any) -> None:
    for seed in (1, 2, 3, 4):
        three = call(unet, 3, seed)
        (given,) = graphs(three)
        if seed == 1:
            assert not Repeated.made and (given == forward(three)[0]).all()
        else:
            padded = merge([three, call(unet, 1, 9)])
            assert (given == forward(padded)[0][:3]).all()
    assert len(Repeated.made) == 1 and Repeated.made[0].replays == 3
    kept = graphs(call(unet, 3, 1))[0]
    before = kept.clone()
    graphs(call(unet, 4, 5))  # the same graph
    assert (kept == before).all() and len(Repeated.made) == 1


def test_each_shape_and_form_has_a_graph_of_its_own(graphs: GraphedForward, unet: Any) -> None:
    for _ in range(2):
        graphs(call(unet, 2, 1))
        graphs(call(unet, 2, 1, size=16))
        assert graphs(call(unet, 2, 1, return_dict=True)).sample.shape == (2, 4, 8, 8)
    assert len(Repeated.made) == 3


def test_what_has_no_fixed_form_runs_without(graphs: GraphedForward, unet: Any) -> None:
    for _ in range(3):
        graphs(call(unet, SIZES[-1] + 1, 1))
        graphs(call(unet, 2, 1, encoder_hidden_states=torch.zeros(1, 77, tiny_models.WIDTH).expand(2, -1, -1)))
    assert len(Repeated.made) == 1


def test_a_graph_shares_the_memory_of_one_that_is_alive(graphs: GraphedForward, unet: Any) -> None:
    """torch fails for the pool of graphs that are gone: seen on a GPU, with a handle that outlived them."""
    graphs.prepare(call(unet, 2, 1), 8)
    assert [graph.shares_with for graph in Repeated.made] == [None, Repeated.made[0], Repeated.made[0]]
    other = GraphedForward(Repeated)
    other.prepare(call(unet, 2, 1), 2)
    assert Repeated.made[-1].shares_with is None


def test_a_failed_capture_is_not_tried_again(unet: Any, caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    class Failing(Repeated):
        def capture(self, work: Callable[[], Any]) -> Any:
            tried.append(1)
            raise RuntimeError("operation not permitted when stream is capturing")

    Repeated.made = []
    graphs = GraphedForward(Failing)
    for _ in range(4):
        assert (graphs(call(unet, 2, 1))[0] == forward(call(unet, 2, 1))[0]).all()
    assert len(tried) == 1 and graphs.captures == 0 and "runs without" in caplog.text


def test_there_are_not_more_graphs_than_there_may_be(graphs: GraphedForward) -> None:
    def double(sample: torch.Tensor, timestep: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        return (sample * 2,)

    for size in range(2, MAX_GRAPHS + 10):
        for _ in range(2):
            graphs(DenoiserCall(double, torch.ones(2, 4, size, 2), torch.tensor(1), {}))
    assert len(Repeated.made) == MAX_GRAPHS


def test_sizes_are_captured_before_anybody_waits(graphs: GraphedForward, unet: Any) -> None:
    graphs.prepare(call(unet, 2, 1), 8)
    assert graphs.captures == len(Repeated.made) == 3  # 2, 4, 8
    graphs(call(unet, 7, 2))
    assert len(Repeated.made) == 3 and Repeated.made[-1].replays == 2


@pytest.mark.parametrize("family", ["sd1", "sdxl", "lcm"])
def test_images_are_the_same(family: str, graphs: GraphedForward, tmp_path: Path) -> None:
    pipelines = load(tiny_models.save(family, tmp_path))
    requests = [a_request("txt2img", "a red apple", 1, 5, 7.5), a_request("img2img", "a house", 2, 7, 7.5)]
    together, _ = generated_together(pipelines, requests, graphs)
    assert any(graph.replays > 1 for graph in Repeated.made)
    for image, request in zip(together, requests, strict=True):
        alone = np.asarray(generated_alone(pipelines, request), dtype=int)
        assert np.abs(np.asarray(image, dtype=int) - alone).max() <= 2
