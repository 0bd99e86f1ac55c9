"""Throughput and latency under load: clients in closed loops, and Poisson arrivals of mixed requests."""

import asyncio
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import httpx

from benchmarks.contenders import OURS, Contender, in_each
from benchmarks.in_process import InProcess
from benchmarks.timing import percentile, ratio, row, seconds
from benchmarks.workload import Request, arrivals, uniform

REQUESTS = 4  # of each client; with fewer, the first and the last forwards, which are not full, count for too much
PLAIN_IMAGES = 4  # that the in-process pipeline generates in each turn
MIXED_CLIENTS = 8  # that the capacity for the mixed list is measured with


@dataclass(frozen=True)
class Load:
    """The latencies of all requests, and the time from the first one's start to the last one's end, in seconds."""

    latencies: list[float]
    seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.latencies) / self.seconds


def client() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(timeout=600, limits=limits, trust_env=False)


async def latency(http: httpx.AsyncClient, contender: Contender, request: Request) -> float:
    """Raises httpx.HTTPError if there is no image."""
    begin = perf_counter()
    body = request.fields | {"task": request.task}
    answer = await http.post(contender.url.format(task=request.task), json=body)
    answer.raise_for_status()
    return perf_counter() - begin


def closed_loop(contender: Contender, requests: Iterable[Request], clients: int) -> Load:
    """Each client sends the next request as soon as it has its answer."""
    waiting = iter(requests)

    async def loop(http: httpx.AsyncClient) -> list[float]:
        return [await latency(http, contender, request) for request in waiting]

    async def load() -> Load:
        async with client() as http:
            begin = perf_counter()
            measured = await asyncio.gather(*(loop(http) for _ in range(clients)))
            return Load([one for own in measured for one in own], perf_counter() - begin)

    return asyncio.run(load())


def open_loop(contender: Contender, requests: Sequence[Request], times: Sequence[float]) -> Load:
    """Each request is sent at its time, whoever else waits."""

    async def at(moment: float, http: httpx.AsyncClient, request: Request) -> float:
        await asyncio.sleep(moment)
        return await latency(http, contender, request)

    async def load() -> Load:
        async with client() as http:
            begin = perf_counter()
            sent = zip(times, requests, strict=True)
            measured = await asyncio.gather(*(at(moment, http, request) for moment, request in sent))
            return Load(list(measured), perf_counter() - begin)

    return asyncio.run(load())


@dataclass
class Loads:
    """What each contender showed in each round, by its name."""

    rounds: list[dict[str, Load]]

    def names(self) -> list[str]:
        """Those that went through every round."""
        return [name for name in self.rounds[0] if all(name in loads for loads in self.rounds)]

    def rates(self, name: str) -> list[float]:
        return [loads[name].rate for loads in self.rounds]

    def rate(self, name: str) -> float:
        return statistics.median(self.rates(name))

    def latency(self, name: str, percent: float) -> float:
        """Over all rounds' requests, in seconds."""
        return percentile([one for loads in self.rounds for one in loads[name].latencies], percent)

    def describe(self, name: str) -> str:
        shown = ", ".join(f"{self.latency(name, percent):.2f}" for percent in (50, 95, 99))
        text = f"{self.rate(name):.2f} images/s; p50, p95, p99 {shown} s"
        if name == OURS:
            return text
        quicker = self.latency(OURS, 95) / self.latency(name, 95)
        return (
            f"{text}; this server {ratio(self.rates(OURS), self.rates(name)):.2f} × its images/s, {quicker:.2f} × p95"
        )


def closed_loops(
    contenders: list[Contender], in_process: InProcess, clients: int, size: int, steps: int, rounds: int
) -> Loads:
    """So many clients, all of them asking for the same size and steps, which is what static batching is best at."""
    requests = uniform(REQUESTS * clients, size, steps)
    loads, plain = Loads([]), []
    for turn in range(rounds):
        first = turn % len(contenders)
        loads.rounds.append(in_each(contenders, lambda contender: closed_loop(contender, requests, clients), first))
        took = seconds(lambda: [in_process.generate(size, steps) for _ in range(PLAIN_IMAGES)])
        plain.append(PLAIN_IMAGES / took)
    what = f"{clients} {'client' if clients == 1 else 'clients'}, {size} px, {steps} steps"
    for name in loads.names():
        text = loads.describe(name)
        if name == OURS:
            text += (
                f"; {ratio(loads.rates(OURS), plain):.2f} × the in-process pipeline one by one "
                f"({statistics.median(plain):.2f}); bare UNet's gain {in_process.unet_gain(size, clients, 3):.2f} ×"
            )
        row(f"{what}: {name}", text)
    return loads


def capacity(server: Contender, requests: Sequence[Request]) -> float:
    """The images a second that this server generates of these requests."""
    rate = closed_loop(server, requests, MIXED_CLIENTS).rate
    row("capacity for mixed requests: this server", f"{rate:.2f} images/s, {MIXED_CLIENTS} clients in closed loops")
    return rate


def arriving(contenders: list[Contender], requests: Sequence[Request], share: float, rate: float) -> None:
    """Mixed requests that arrive at `share` of `rate` images a second, at the same times for everybody."""
    times = arrivals(len(requests), share * rate)
    loads = Loads([in_each(contenders, lambda contender: open_loop(contender, requests, times))])
    for name in loads.names():
        row(f"mixed, Poisson at {share:.1f} × this capacity: {name}", loads.describe(name))
