"""What the swap of a large version costs the facts that are being answered.

A forest serves a steady load from its facts on; grown further, it is published again and again. Latency
is from the append of a fact to that of its prediction: of facts within `AROUND` of a swap, and of the others.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import Any

from bench.harness import (
    Broker,
    Child,
    Options,
    Topic,
    broker,
    medians,
    percentile,
    prepare,
    running,
    write,
)
from bench.latency import _timed
from bench.work import NUMBERS, Declared, features, label, version, versions, woods

BYTES = 6_000_000  # of a version, or what `MOST` examples make of one
RATE = 300  # facts/s: a forest of ten trees takes about 0.2 ms a fact
APART = 4.0  # s between two versions
AROUND = (-0.1, 2.0)  # s: within these after a version was written, it is examined and swapped in


async def measure(options: Options) -> dict[str, Any]:
    forest, learned = _grown(BYTES if options.size > 10_000 else BYTES // 100)
    found: dict[str, Any] = {}
    for kind in ("kafka", "embedded"):
        with broker(kind) as on:
            runs = [await _run(on, forest, learned, turn, options) for turn in range(min(3, options.rounds))]
        found[kind] = medians(runs)
    return {"version bytes": len(pickle.dumps(forest)), **found}


def _grown(size: int) -> tuple[Any, int]:
    forest, learned = woods(), 0
    while len(pickle.dumps(forest)) < size:
        for _ in range(500):
            forest.learn_one({name: features(learned)[name] for name in NUMBERS}, label(learned))
            learned += 1
    return forest, learned


async def _run(on: Broker, forest: Any, learned: int, turn: int, options: Options) -> dict[str, float]:
    declared = Declared(f"swap{turn}", "forest")
    pipeline = declared.pipeline()
    swaps = max(1, int(min(options.seconds, 20.0) / APART))
    seconds = (swaps + 1) * APART
    await prepare(on, pipeline)
    await write(on, versions(pipeline, "linear")[-2:])  # the fallback's
    await write(on, version(pipeline, "first", forest, 1, learned))
    ready = [version(pipeline, "first", forest, number, learned) for number in range(2, swaps + 2)]
    child = Child.agents(on, declared, "ingest,score")
    async with running(child):
        await child.until_at_work()
        load = {**declared.environment(), "BENCH_BROKER": on.address}
        load |= {"BENCH_RATE": str(RATE), "BENCH_SECONDS": str(seconds)}
        producer, at = Child.spawn(["bench.load"], load), []
        async with running(producer), Topic(on, pipeline.topic("predictions"), pipeline.partitions) as topic:
            await topic.until(1, child)
            for outs in ready:
                await asyncio.sleep(APART)
                at.append(time.time())
                await write(on, outs)
            await topic.until(int(RATE * seconds), child, looks=0.25)
            predictions = await topic.rows()
        async with Topic(on, pipeline.topic("facts"), pipeline.partitions) as topic:
            facts = {_timed(row).id: row.ms for row in await topic.rows()}
    near, far = list[float](), list[float]()
    for row in predictions:
        fact = facts[_timed(row).id]
        swapping = any(AROUND[0] < fact / 1000 - each < AROUND[1] for each in at)
        (near if swapping else far).append(float(row.ms - fact))
    return {**_figures("around a swap", near), **_figures("else", far), "swaps": float(swaps)}


def _figures(name: str, values: list[float]) -> dict[str, float]:
    values.sort()
    return {
        f"{name}, p50 ms": percentile(values, 0.5),
        f"{name}, p99 ms": percentile(values, 0.99),
        f"{name}, most ms": values[-1],
    }
