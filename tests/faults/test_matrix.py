"""Each part of the server, killed, ended and stopped, idle and under load: what clients get, and that it all happened.

`make fault-matrix` runs all of it, with other models, and prints docs/reliability.md's table; otherwise it is a part.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

import httpx
import psutil
import pytest

from launch.machine import free_ports
from tests.support import tiny_models
from tests.support.history import KINDS, History, other_model
from tests.support.networks import save_lora
from tests.support.parts import CLIENTS, has_ended, inflict, parts
from tests.support.paths import HOME
from tests.support.running import HANG_S, Running, running, wait_for

pytestmark = pytest.mark.faults

WHOLE = "SD_FAULT_MATRIX" in os.environ
KILL, TERM, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP
SHORT = [("worker", KILL, True), ("worker", STOP, True), ("java", KILL, True), ("proxy", KILL, True),
         ("server.py", KILL, True)]  # fmt: skip
# by signal: a server.py that has started a part again five times in ten minutes ends, and here another one has begun
ALL = [(part, number, loaded) for number in (KILL, TERM, STOP) for part in ("worker", "java", "proxy", "server.py")
       for loaded in (False, True)]  # fmt: skip
# what a client may get besides its image: nothing, unless the process that holds its connection goes
LOSSES: dict[str, set[str]] = {"worker": set(), "java": set(), "proxy": {"failed", "unknown"},
                               "server.py": {"failed", "unknown"}}  # fmt: skip


class Kept:
    """A server that is started again, at the same address and in the same folder, when a test has ended it."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder, self.options, self._port = folder, options, free_ports(1)[0]
        self._stack = ExitStack()
        self.start()

    def start(self) -> None:
        # a part of the clients' requests queue, and more clients are too many
        limits = {"SD_MAX_OPEN": "6", "SD_MAX_WAITING": "4", "HF_HOME": str(self.folder / "hub")}
        limits["SD_CONFIG"] = str(self.folder / "config.json")
        models = ("--models-dir", str(self.folder / "models"), "--max-models", "1")
        started = running(self.folder, *self.options, *models, port=self._port, **limits)
        self.instance: Running = self._stack.enter_context(started)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def history() -> History:
    return History()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("matrix")
    save_lora(folder / "loras" / "ink.safetensors")
    (folder / "models").mkdir()
    if WHOLE:
        tiny_models.save("sdxl", folder / "models" / "other")
    server = Kept(folder, ["--model", str(tiny_model), "--lora-dir", str(folder / "loras")])
    yield server
    server.close()


def is_whole(instance: Running) -> bool:
    """Whether an image succeeds."""
    try:
        answer = httpx.post(f"{instance.url}/txt2img", json={"prompt": "x", "num_inference_steps": 1}, timeout=HANG_S)
    except httpx.TransportError:
        return False
    return answer.status_code == 200


def restarts(instance: Running) -> int:
    """How often server.py has started TorchServe or the proxy again."""
    return instance.output.read_text().count(": started again.")


@pytest.mark.parametrize(("part", "number", "loaded"), ALL if WHOLE else SHORT)
def test_a_fault(kept: Kept, history: History, part: str, number: signal.Signals, loaded: bool) -> None:
    instance = kept.instance
    wait_for(lambda: is_whole(instance))
    before, restarted = parts(instance), restarts(instance)
    target = instance.process if part == "server.py" else before[part]
    began = time.monotonic()
    with history.clients(instance.url, CLIENTS) if loaded else nullcontext():
        wait_for(lambda: not loaded or history.outcomes(began)["answered"] >= CLIENTS)
        faulted = time.monotonic()
        inflict(target, number)
        if number != STOP and part == "server.py":
            wait_for(lambda: all(has_ended(process) for process in before.values()))
            ended = time.monotonic() - faulted
            kept.start()
            instance = kept.instance
            # what the earlier one left is gone, but for its logs
            folders = [[entry.name for entry in left.iterdir()] for left in kept.folder.glob("sd-server-*")]
            assert len([names for names in folders if names != ["logs"]]) == 1
        wait_for(lambda: is_whole(instance))
        seconds = time.monotonic() - faulted
    after = parts(instance)
    assert after.keys() == before.keys()
    if number != STOP and part != "server.py":
        assert after[part].pid != target.pid
        assert restarts(instance) == restarted + (part in ("java", "proxy"))
        if part == "java":
            assert has_ended(before["worker"])  # nobody would end it any more
    assert len(instance.workers()) == 1
    outcomes = history.outcomes(began)
    assert outcomes.keys() <= {"answered"} | (LOSSES[part] if number != STOP else set()), [
        asked.problem for asked in history.asked if asked.began >= began and asked.outcome != "answered"
    ]
    if WHOLE:
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        name = {KILL: "KILL", TERM: "TERM", STOP: "STOP"}[number]
        note = f", the others end after {ended:.1f} s" if number != STOP and part == "server.py" else ""
        print(f"| {part} | {name} | {'loaded' if loaded else 'idle'} | {told or '-'} | {seconds:.1f} s{note} |")


def test_a_reload_and_a_full_queue(kept: Kept, history: History) -> None:
    instance, began = kept.instance, time.monotonic()
    with history.clients(instance.url, CLIENTS):
        command = [sys.executable, "-m", "admin.reload"]
        environment = os.environ | {"TMPDIR": str(kept.folder)}
        reloaded = subprocess.run(command, cwd=HOME, env=environment, capture_output=True, text=True, timeout=HANG_S)
    assert reloaded.returncode == 0, reloaded.stderr
    assert history.outcomes(began).keys() == {"answered"}
    began = time.monotonic()
    with history.clients(instance.url, 4 * CLIENTS):
        wait_for(lambda: {"answered", "failed"} <= history.outcomes(began).keys())
    refused = [asked for asked in history.asked if asked.began >= began and asked.outcome != "answered"]
    assert {asked.status for asked in refused} == {503}, [asked.problem for asked in refused]


@pytest.mark.skipif(not WHOLE, reason="models that take turns take minutes")
@pytest.mark.parametrize(("part", "times"), [("worker", 3), ("java", 2)])
def test_models_take_turns_while_a_part_dies(kept: Kept, history: History, part: str, times: int) -> None:
    instance, began = kept.instance, time.monotonic()
    with history.clients(instance.url, CLIENTS, (*KINDS, other_model)):
        for count in range(10, 10 * times + 1, 10):
            wait_for(lambda count=count: history.outcomes(began)["answered"] >= count)
            wait_for(lambda: part in parts(instance))
            inflict(parts(instance)[part], KILL)
    wait_for(lambda: len(instance.workers()) == 1)  # no more than fit, whatever has died
    outcomes = history.outcomes(began)
    assert outcomes.keys() == {"answered"}, [asked.problem for asked in history.asked if asked.began >= began]
    print(f"| {part} | KILL, {times} times | models take turns | {outcomes['answered']} answered | |")


def test_no_request_was_lost_and_equal_ones_have_equal_images(history: History) -> None:
    history.check()
    assert {asked.kind for asked in history.asked if asked.outcome == "answered"} >= {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("number", [KILL, STOP])
def test_a_fault_that_befalls_another_process_is_none(number: signal.Signals) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with psutil.Popen(command) as target, psutil.Popen(command) as other:
        with pytest.raises(AssertionError):
            inflict(target, number, sent_to=other, proof_s=1)
        for process in (target, other):
            process.kill()
