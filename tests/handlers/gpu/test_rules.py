"""What the fake device holds to, of the rules of a real one."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.support.fake_cuda import Card, DeviceMismatch, fake_cuda
from tests.support.fake_streams import fake_gpu

Work = Callable[[torch.Tensor], object]


@pytest.fixture
def card() -> Iterator[Card]:
    with fake_cuda() as card:
        yield card


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(2, 3),
        lambda x: torch.cat([x, torch.ones(2, 3)]),
        lambda x: torch.nn.functional.linear(x, torch.ones(4, 3)),
        lambda x: torch.nn.functional.layer_norm(x, (3,), torch.ones(3)),
    ],
)
def test_a_kernel_takes_no_tensor_of_the_cpu(work: Work, card: Card) -> None:
    with pytest.raises(DeviceMismatch, match="of the CPU in test_rules"):
        work(torch.ones(2, 3, device="cuda"))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x == 1).all()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x[torch.tensor([0])],
        lambda x: torch.equal(x, x),
        lambda x: torch.ones(3).to(x),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),  # from memory that is not pinned
        lambda x: torch.tensor([1.0], device=x.device),
    ],
)
def test_the_host_waits_for_a_number_and_for_a_copy(work: Work, card: Card) -> None:
    x = torch.ones(2, 3, device="cuda")
    work(x)
    assert [wait.line.startswith("test_rules.py") for wait in card.waits] == [True]


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[0, None, ..., 1:] * 2,
        lambda x: x * torch.tensor(2.0),  # a number of the CPU goes with the kernel
        lambda x: torch.full((3,), 2.0, device=x.device) + x,
        lambda x: x.to(torch.float16).expand(2, 3).transpose(0, 1).contiguous(),
        lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
        lambda x: x.to("cpu", non_blocking=True),
    ],
)
def test_what_is_only_queued_waits_for_nothing(work: Work, card: Card) -> None:
    work(torch.ones(2, 3, device="cuda"))
    assert not card.waits


def test_numbers_on_their_way_are_there_after_a_wait(card: Card) -> None:
    x = torch.ones(2, device="cuda")
    copy = x.to("cpu", non_blocking=True)
    x += 1
    assert not (copy == 1).any()
    x.cpu()
    assert (copy == 1).all()


def test_a_module_goes_there_and_back(card: Card) -> None:
    module, x = torch.nn.Linear(3, 2), torch.ones(1, 3)
    expected = module(x)
    made = module.to("cuda")(x.to("cuda"))
    assert str(made.device) == str(module.weight.device) == "cuda:0"
    assert isinstance(module.weight, torch.nn.Parameter) and torch.equal(made.cpu(), expected)
    assert torch.equal(module.to("cpu")(x), expected)
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        made.numpy()


def test_a_graph_repeats_its_work_on_the_same_tensors_and_may_not_wait() -> None:
    with fake_gpu() as card:
        x = torch.ones(2, device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            made = (x * 2)[:1] + 1
        x.fill_(5)
        graph.replay()
        assert made.tolist() == [11]
        for work in (lambda: x.sum().item(), lambda: torch.ones(2).to("cuda")):
            with (
                pytest.raises(RuntimeError, match="not permitted when stream is capturing"),
                torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"),
            ):
                work()
        assert card.tape is None
