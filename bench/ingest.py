"""Events per second that one process turns into facts: parsed, validated, deduplicated, routed.

`fetch` reads and decodes the same topic and does nothing with it. Every fact is compared with its event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from bench.harness import (
    BEFORE,
    OURS,
    Broker,
    Child,
    Options,
    Row,
    Topic,
    broker,
    compared,
    fetched,
    prepare,
    rate,
    rotated,
    running,
    write,
)
from bench.work import Declared, Measured, events, fact
from riverkeeper.topics.messages import Envelope

EMBEDDED_EVENTS = 40_000  # of which the embedded broker holds events and facts: 5 MB a partition


async def measure(options: Options) -> dict[str, Any]:
    found = {}
    for kind, size in (("kafka", options.size), ("embedded", min(EMBEDDED_EVENTS, options.size))):
        with broker(kind) as on:
            found[kind] = await _rounds(on, size, options)
    return found


async def _rounds(on: Broker, size: int, options: Options) -> dict[str, Any]:
    names = [OURS, "fetch", *([BEFORE] if options.against else [])]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(options.rounds):
        declared = Declared(f"ingest{turn}")
        for family in (declared, declared.before())[: 2 if options.against else 1]:
            await prepare(on, family.pipeline())
            await write(on, events(family.pipeline(), size))
        for name in rotated(names, turn):
            if name == "fetch":
                runs[name].append(await _fetch(on, declared, size))
            elif name == OURS:
                runs[name].append(await _ours(on, declared, size))
            else:
                runs[name].append(await _ours(on, declared.before(), size, options.against))
    return {"events": size, **compared(runs)}


async def _ours(on: Broker, declared: Declared, size: int, tree: str = "") -> dict[str, float]:
    pipeline, child = declared.pipeline(), Child.agents(on, declared, "ingest", tree)
    async with running(child), Topic(on, pipeline.topic("facts"), pipeline.partitions) as topic:
        first, began, last = await topic.until(size, child)
        rows = await topic.rows()
    _check(rows, size)
    return {
        "rate": rate(rows),
        "cpu us": (last.cpu - first.cpu) / max(1, size - began) * 1e6,
        "MB at most": last.most,
    }


def _check(rows: Sequence[Row], size: int) -> None:
    found = [msgspec.json.decode(row.value, type=Envelope[Measured]) for row in rows]
    if {each.id for each in found} != {str(i) for i in range(size)} or len(found) != size:
        raise RuntimeError(f"{len(found)} facts of {size} events, or not one of each")
    if wrong := [each for each in found if each.data != fact(int(each.id))]:
        raise RuntimeError(f"{len(wrong)} of {size} facts differ from their event, such as {wrong[0]}")


async def _fetch(on: Broker, declared: Declared, size: int) -> dict[str, float]:
    source = declared.pipeline().topic("events")
    return await fetched({"BENCH_BROKER": on.address, "BENCH_INPUT": source, "BENCH_COUNT": str(size)})
