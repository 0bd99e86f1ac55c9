"""A short request behind eight long ones."""

import asyncio
import statistics

from benchmarks.contenders import ONE_BY_ONE, Contender, in_each
from benchmarks.load import client, latency
from benchmarks.timing import ratio, row
from benchmarks.workload import text_to_image

LONG, LONG_STEPS, SHORT_STEPS = 8, 50, 5
HEAD_START = 0.5  # seconds; by then the long ones have arrived everywhere, and none is done


def short_behind_long(contenders: list[Contender], size: int, rounds: int) -> None:
    """Its latency beside what it is where requests are served one by one, so that it waits for all eight."""
    measured = [in_each(contenders, lambda contender: _short(contender, size)) for _ in range(rounds)]
    for name in measured[0]:
        times = [times[name] for times in measured if name in times]
        text = f"{statistics.median(times):.2f} s"
        one_by_one = [times[ONE_BY_ONE] for times in measured if ONE_BY_ONE in times]
        if name != ONE_BY_ONE and len(one_by_one) == len(times):
            text += f", {ratio(times, one_by_one):.3f} × that of {ONE_BY_ONE}"
        row(f"{SHORT_STEPS} steps behind {LONG} × {LONG_STEPS}, {size} px: {name}", text)


def _short(contender: Contender, size: int) -> float:
    async def load() -> float:
        async with client() as http:
            long = [
                asyncio.create_task(latency(http, contender, text_to_image(size, LONG_STEPS, number)))
                for number in range(LONG)
            ]
            await asyncio.sleep(HEAD_START)
            short = await latency(http, contender, text_to_image(size, SHORT_STEPS, LONG))
            await asyncio.gather(*long)
            return short

    return asyncio.run(load())
