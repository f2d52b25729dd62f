"""Examples per second that one process joins while many predictions wait, and what a waiting one takes.

All predictions are written before join starts; outcomes come once they all wait. Then the process is
killed, and how soon it is at work again is told as well.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import msgspec

from bench.harness import (
    LOOK,
    Broker,
    Child,
    Options,
    Row,
    Topic,
    broker,
    medians,
    prepare,
    rate,
    running,
    write,
)
from bench.work import Declared, features, label, outcomes, predictions
from riverkeeper.topics.messages import Example

WAITING = "riverkeeper_pending_predictions"
EMBEDDED_PREDICTIONS = 15_000  # of which the embedded broker holds 5 MB a partition
SHARE = 0.2  # of what waits that then comes true


async def measure(options: Options) -> dict[str, Any]:
    found = {}
    for kind, most in (("kafka", options.pending), ("embedded", EMBEDDED_PREDICTIONS)):
        with broker(kind) as on:
            size = min(most, options.pending)
            # A million predictions take half a minute to write: fewer rounds tell enough.
            rounds = min(options.rounds, 3)
            runs = [await _run(on, size, turn) for turn in range(rounds)]
        found[kind] = {"pending": size, "rounds": rounds, **medians(runs)}
    return found


async def _run(on: Broker, size: int, turn: int) -> dict[str, float]:
    declared = Declared(f"join{turn}")
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    child = Child.agents(on, declared, "join")
    async with running(child):
        await child.until_at_work()
        before = child.used()
        began = time.monotonic()
        await write(on, predictions(pipeline, size))
        await _until(child, size)
        filled, full = time.monotonic() - began, child.used()
        told = max(1, int(size * SHARE))
        async with Topic(on, pipeline.topic("examples"), pipeline.partitions) as topic:
            await write(on, outcomes(pipeline, told))
            first, seen, last = await topic.until(told, child)
            rows = await topic.rows()
        _check(rows, told)
        child.end(signal.SIGKILL)
    figures = {
        "rate": rate(rows),
        "cpu us": (last.cpu - first.cpu) / max(1, told - seen) * 1e6,
        "predictions taken in per s, as they are written": size / filled,
        "bytes a pending prediction": (full.resident - before.resident) * 2**20 / size,
        "MB at work, none pending": before.resident,
        "MB, all pending": full.resident,
    }
    if on.embedded is not None:
        return figures
    again = Child.agents(on, declared, "join")
    async with running(again):
        stages = await again.until_at_work()
        now = again.used()
    return {
        **figures,
        "restored, s": max(stages.values()) - stages["imports"],
        "restored, MB": now.resident,
        "restored, MB at most": now.most,
    }


async def _until(child: Child, size: int) -> None:
    while await asyncio.to_thread(child.sum_of, WAITING) < size:
        child.check()
        await asyncio.sleep(10 * LOOK)


def _check(rows: list[Row], told: int) -> None:
    found = [msgspec.json.decode(row.value, type=Example) for row in rows]
    ids = {each.id for each in found}
    if len(ids) != len(found) or ids != {str(i) for i in range(told)}:
        raise RuntimeError(f"{len(found)} examples of {told} outcomes, or not one of each")
    if any(each.label != label(int(each.id)) or each.features != features(int(each.id)) for each in found):
        raise RuntimeError("an example differs from its prediction or its outcome")
