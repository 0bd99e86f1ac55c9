"""Images a second and p95 latency over the number of clients, as a small SVG."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.contenders import OURS
from benchmarks.load import Loads


def plot(measured: Mapping[int, Loads], title: str, file: Path) -> None:
    """Draws what `closed_loops` gave for each number of clients. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "bench",
        "font.size": 9,
        "font.sans-serif": ["DejaVu Sans"],
    }
    from matplotlib import pyplot

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
