"""How soon a scorer that was started again is at work, and how it catches up.

A score process under a live load is killed (-9), or stopped in order (SIGTERM), and started again at
once: seconds from its spawn to each stage, up to the append time of the first new prediction. Stages are
what /readyz says. For `catching up` it stays away while `AWAY` seconds of the load gather: facts/s then.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

from bench.harness import (
    LOOK,
    PATIENCE,
    Broker,
    Child,
    Options,
    Topic,
    broker,
    medians,
    prepare,
    running,
    write,
)
from bench.work import Declared, facts, versions

AWAY = 100.0  # s of the load
SETTLED = 0.5  # s of the load that score may be behind when it is killed


async def measure(options: Options) -> dict[str, Any]:
    rate = options.rates[0]
    with broker("kafka") as on:
        killed = [await _restarted(on, rate, signal.SIGKILL, turn) for turn in range(options.rounds)]
        stopped = [await _restarted(on, rate, signal.SIGTERM, turn) for turn in range(options.rounds)]
        size = min(options.size, int(AWAY * rate))
        caught = [await _catching_up(on, size, turn) for turn in range(min(3, options.rounds))]
    return {
        "facts per s": rate,
        "SIGKILL": medians(killed),
        "SIGTERM": medians(stopped),
        "catching up": {"facts": size, **medians(caught)},
    }


async def _restarted(on: Broker, rate: int, signum: signal.Signals, turn: int) -> dict[str, float]:
    declared = Declared(f"restart-{signum.name.lower()}{turn}")
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    await write(on, versions(pipeline))
    load = {**declared.environment(), "BENCH_BROKER": on.address, "BENCH_RATE": str(rate)}
    ingest, first = Child.agents(on, declared, "ingest"), Child.agents(on, declared, "score")
    producer = Child.spawn(["bench.load"], {**load, "BENCH_SECONDS": str(PATIENCE)})
    async with running(ingest), running(producer), Topic(on, pipeline.topic("predictions"), 4) as topic:
        async with running(first):
            await first.until_at_work()
            await topic.until(rate, first)
            await asyncio.to_thread(first.process.send_signal, signum)
            await asyncio.to_thread(first.process.wait, PATIENCE)
        await topic.skip_to_end()
        again = Child.agents(on, declared, "score")
        async with running(again):
            stages = await again.until_at_work()
            await topic.until(await topic.total() + 1, again)
            appended = min(row.ms for row in await topic.rows()) / 1000
    return {"first prediction, s": appended - again.spawned, **{f"{n}, s": at for n, at in stages.items()}}


async def _catching_up(on: Broker, size: int, turn: int) -> dict[str, float]:
    declared = Declared(f"catchup{turn}")
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    await write(on, versions(pipeline))
    await write(on, facts(pipeline, size))
    child = Child.agents(on, declared, "score")
    async with running(child), Topic(on, pipeline.topic("predictions"), 4) as topic:
        await topic.until(1, child)
        first, began = await topic.total(), time.monotonic()
        await topic.until(size, child, looks=LOOK)
        return {"rate": (size - first) / (time.monotonic() - began)}
