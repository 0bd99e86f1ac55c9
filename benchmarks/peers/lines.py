"""A pipeline in a process of its own, which generates when a line asks for it. Standard library alone."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

GUIDANCE_SCALE = 7.5
READY, TOOK = "== ready", "== took"  # libraries print lines of their own


def answer(generate: Callable[[str, int, int], Any]) -> None:
    """Generates for each line of standard input, until its end, and prints the seconds.

    Args:
        generate: gets the prompt, the size in pixels, and the number of steps.
    """
    print(READY, flush=True)
    for line in sys.stdin:
        size, steps, prompt = line.split(maxsplit=2)
        begin = time.perf_counter()
        generate(prompt, int(size), int(steps))
        print(TOOK, time.perf_counter() - begin, flush=True)


def answer_with(pipeline: Any) -> None:
    """Answers with a pipeline of diffusers, or one that is called alike."""
    pipeline.set_progress_bar_config(disable=True)
    answer(
        lambda prompt, size, steps: pipeline(
            prompt, num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE, width=size, height=size
        )
    )


class Peer:
    """A process of such a module.

    Args:
        python: the interpreter that has the peer's packages.
        log: the file for what it prints to standard error.

    Raises RuntimeError with the last line of its log if it ends.
    """

    def __init__(
        self, python: str, module: str, arguments: Sequence[str], environment: Mapping[str, str], home: Path, log: Path
    ) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [python, "-m", f"benchmarks.peers.{module}", *arguments],
                cwd=home, env=dict(environment), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._read(READY)

    def seconds(self, prompt: str, size: int, steps: int) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{size} {steps} {prompt}\n")
        self.process.stdin.flush()
        return float(self._read(TOOK))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self, mark: str) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(mark):
                return line.removeprefix(mark)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else "it says nothing")
