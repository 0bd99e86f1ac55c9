"""The figures as small SVGs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS
from benchmarks.load import Loads


def plot(measured: Mapping[int, Loads], title: str, file: Path) -> None:
    """Draws images a second and p95 latency over the number of clients. Raises ImportError without matplotlib."""
    pyplot = _pyplot()
    figure, (rates, latencies) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    clients = sorted(measured)
    for name in measured[clients[0]].names():
        shown = [number for number in clients if name in measured[number].names()]
        style = {"marker": "o", "label": name, "linewidth": 2.5 if name == OURS else 1.2}
        rates.plot(shown, [measured[number].rate(name) for number in shown], **style)
        latencies.plot(shown, [measured[number].latency(name, 95) for number in shown], **style)
    for axes, what in ((rates, "images a second"), (latencies, "p95 latency, seconds")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(number) for number in clients])
        axes.set(xlabel="clients", ylabel=what, ylim=(0, None))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    latencies.legend(frameon=False)
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, metadata={"Date": None})


def bars(measured: Mapping[int, Mapping[str, float]], title: str, file: Path) -> None:
    """Draws the seconds of each engine, for each size in pixels. Raises ImportError without matplotlib."""
    pyplot = _pyplot()
    figure, rows = pyplot.subplots(1, len(measured), figsize=(9, 2.6), layout="constrained", squeeze=False)
    for axes, (size, seconds) in zip(rows[0], measured.items(), strict=True):
        colours = ["C0" if name.startswith("this server") else "C7" for name in seconds]
        drawn = axes.barh(list(seconds), list(seconds.values()), color=colours)
        axes.bar_label(drawn, fmt="%.2f", padding=3)
        axes.set(xlabel="seconds a step", title=f"{size} px", xlim=(0, 1.15 * max(seconds.values())))
        axes.invert_yaxis()
    figure.suptitle(title, fontsize=9)
    figure.savefig(file, metadata={"Date": None})


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "bench",
        "font.size": 9,
        "font.sans-serif": ["DejaVu Sans"],
    }
    from matplotlib import pyplot

    return pyplot
