"""`GET /metrics`: the proxy's figures, each archive's and TorchServe's, in Prometheus' text format."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any

import anyio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from proxy.errors import Failure
from proxy.loading import Loading
from proxy.telemetry import Counts
from proxy.upstream import Upstream

# an archive's counters by their names in `activity`
COUNTERS = {
    "unet_forwards": "UNet forwards.",
    "merged_forwards": "UNet forwards that served more than one request.",
    "unet_rows": "Rows of all UNet forwards; divided by unet_forwards, the rows of one.",
    "steps": "Denoising steps of all images.",
    "queue_seconds": "Seconds that requests waited for their first step, summed.",
    "started_requests": "Requests that got their first step.",
}


WAIT_S = 5  # for an archive's figures: one that hangs or loads gives none


class ArchiveCollector(Collector):
    """The figures that the archives report."""

    def __init__(self, described: Iterable[Mapping[str, Any]]) -> None:
        self._activities = {model["archive"]: model["activity"] for model in described}

    def collect(self) -> Iterable[Metric]:
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"sd_{name}", text, labels=["archive"])
            for archive, activity in self._activities.items():
                counter.add_metric([archive], activity[name])
            yield counter
        seconds = CounterMetricFamily("sd_stage_seconds", "Seconds by stage.", labels=["archive", "stage"])
        open_requests = GaugeMetricFamily("sd_open_requests", "Requests in a worker.", labels=["archive"])
        for archive, activity in self._activities.items():
            open_requests.add_metric([archive], activity["open_requests"])
            for stage, value in activity["stage_seconds"].items():
                seconds.add_metric([archive, stage], value)
        yield seconds
        yield open_requests


async def metrics(request: Request) -> Response:
    """Archives that do not answer are left out, so no worker can make a scrape fail."""
    counts: Counts = request.app.state.counts
    upstream: Upstream = request.app.state.upstream
    loading: Loading = request.app.state.loading

    async def described(archive: str) -> list[dict[str, Any]]:
        with suppress(Failure), anyio.move_on_after(WAIT_S):
            return await loading.describe(archive)
        return []

    answers = await asyncio.gather(*map(described, await loading.archives()))
    archives = CollectorRegistry()
    archives.register(ArchiveCollector(chain.from_iterable(answers)))
    texts = [generate_latest(counts.registry), generate_latest(archives), await upstream.metrics()]
    return PlainTextResponse(b"".join(texts), media_type="text/plain; version=0.0.4")
