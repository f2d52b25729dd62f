"""What a fact costs score as models and partitions grow in number, and what a second process adds.

Processor microseconds a fact, for the machine's other work does not lengthen them as it does the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from bench.harness import (
    Broker,
    Child,
    Options,
    Topic,
    broker,
    medians,
    prepare,
    rate,
    rotated,
    running,
    write,
)
from bench.work import Declared, facts, versions

MODELS = (1, 10, 100, 1_000)
PARTITIONS = (1, 4, 16, 64)
SHARED = 8  # partitions that one process or two share
EMBEDDED_FACTS = 20_000


async def measure(options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {}
    size = options.size // 2
    tiny = size < 10_000
    with broker("kafka") as on:
        models = {f"{n} models": Declared("m", models=n) for n in (MODELS[:2] if tiny else MODELS)}
        found["models"] = await _rounds(on, models, size, options)
        places = {
            f"{n} partitions": Declared("p", partitions=n) for n in (PARTITIONS[:2] if tiny else PARTITIONS)
        }
        found["partitions"] = await _rounds(on, places, size, options)
        both = {
            "1 process": Declared("r", partitions=SHARED),
            "2 processes": Declared("r", partitions=SHARED),
        }
        found["processes"] = await _rounds(on, both, 2 * size, options)
    with broker("embedded") as on:
        few = {"1 models": Declared("m"), "10 models": Declared("m", models=10)}
        found["embedded, models"] = await _rounds(on, few, min(size, EMBEDDED_FACTS), options)
    return found


async def _rounds(on: Broker, cases: dict[str, Declared], size: int, options: Options) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for turn in range(min(3, options.rounds)):
        for name in rotated(list(cases), turn):
            case = cases[name]
            label = f"{case.name}{turn}-{name.replace(' ', '-')}"
            declared = Declared(label, case.kind, case.models, case.partitions)
            processes = 2 if name == "2 processes" else 1
            runs[name].append(await _run(on, declared, size, processes))
    return {"facts": size, **{name: medians(found) for name, found in runs.items()}}


async def _run(on: Broker, declared: Declared, size: int, processes: int) -> dict[str, float]:
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    await write(on, versions(pipeline))
    async with AsyncExitStack() as stack:
        children = [Child.agents(on, declared, "score") for _ in range(processes)]
        for child in children:
            await stack.enter_async_context(running(child))
        for child in children:
            await child.until_at_work()
        topic = await stack.enter_async_context(Topic(on, pipeline.topic("predictions"), pipeline.partitions))
        await asyncio.sleep(1.0)  # the second process's arrival moves partitions once more
        before = [child.used() for child in children]
        filling = asyncio.create_task(write(on, facts(pipeline, size)))
        await topic.until(size, children[0])
        await filling
        after = [child.used() for child in children]
        rows = await topic.rows()
    return {"cpu us": _spent(before, after) / size * 1e6, "rate": rate(rows), "MB at most": after[0].most}


def _spent(before: Sequence[Any], after: Sequence[Any]) -> float:
    return float(sum(then.cpu - now.cpu for now, then in zip(before, after, strict=True)))
