"""HAProxy before three servers of ours on loopback: what fails when they do. `make test-cluster`."""

import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from launch.machine import free_ports
from tests.cluster.haproxy import balancing
from tests.cluster.nodes import Load, Node, load, started
from tests.support.running import HANG_S, wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[list[Node]]:
    with started(tmp_path_factory.mktemp("nodes"), tiny_model, 3) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def url(nodes: list[Node], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with balancing([node.port for node in nodes], tmp_path_factory.mktemp("haproxy") / "haproxy.log") as url:
        yield url


def test_a_node_dies_and_another_freezes(nodes: list[Node], url: str, capsys: pytest.CaptureFixture[str]) -> None:
    killed, frozen, _ = nodes
    with load(url) as clients:
        wait_for(lambda: all(node.answered() > 1 for node in nodes))
        killed.kill()
        frozen.signal(signal.SIGSTOP)
        clients.wait_for_everyone()
        frozen.signal(signal.SIGCONT)
        killed.start()
        wait_for(lambda: killed.answered() > 1)  # it is back
    report("one node killed, one frozen", clients, capsys)
    assert not clients.failures


def test_the_nodes_are_restarted_one_after_the_other(
    nodes: list[Node], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with load(url, events=True) as clients:  # those cannot be repeated once they have begun
        clients.wait_for_everyone()
        for node in nodes:
            node.stop()
            node.start()
            wait_for(lambda node=node: node.answered() > 1)  # the balancer sends to it again
        clients.wait_for_everyone()
    report("three nodes restarted", clients, capsys)
    assert not clients.failures


def test_without_a_node_the_answer_is_the_contracts(tmp_path: Path) -> None:
    with balancing(free_ports(3), tmp_path / "haproxy.log", status=503) as url:
        answer = httpx.post(f"{url}/txt2img", data={"prompt": "x"}, timeout=HANG_S)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "10"
    assert answer.json()["status"] == "failure"


def report(what: str, clients: Load, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(
            f"\n{what}: {len(clients.seconds)} requests, {len(clients.failures)} failed; "
            f"median {statistics.median(clients.seconds):.1f} s, slowest {max(clients.seconds):.1f} s"
        )
