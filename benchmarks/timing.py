"""Times taken in turns, what is made of them, and the table's rows."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_turns(rounds: int, *works: Callable[[], Any], warm_up: bool = True) -> list[list[float]]:
    """The seconds of each work in each round, one after the other within a round, after one round that warms up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds + warm_up):
        for measured, work in zip(times, works, strict=True):
            measured.append(seconds(work))
    return [measured[warm_up:] for measured in times]


def difference(ours: Sequence[float], other: Sequence[float]) -> float:
    """The median of the differences of each round."""
    return statistics.median(a - b for a, b in zip(ours, other, strict=True))


def ratio(ours: Sequence[float], other: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(ours, other, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def row(what: str, measured: str) -> None:
    print(f"| {what} | {measured} |", flush=True)
