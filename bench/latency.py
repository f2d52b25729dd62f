"""Milliseconds from an event's time to its prediction on `predictions`, at steady rates.

Two hops through Kafka: ingest and score share one process, join and learn another, while versions are
learned and swapped. Beside them, at the same rates and in turns, a process that passes records on twice and
does nothing with them: what two hops take on this machine (`bare`). Append times are whole milliseconds, so
every figure is up to one too low.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from bench.harness import (
    Broker,
    Child,
    Options,
    Row,
    Topic,
    broker,
    manifests,
    medians,
    percentile,
    prepare,
    running,
    write,
)
from bench.work import Declared, versions

WARMING = 0.2  # share of a run, or 5 s, that is left out: connections and caches
EMBEDDED_EVENTS = 20_000  # whose predictions the embedded broker still holds at the end


class Timed(msgspec.Struct):
    """What both a fact and its prediction say."""

    id: str
    time: datetime


async def measure(options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with broker("kafka") as on:
        for rate in options.rates:
            runs = []
            for turn in range(options.rounds):
                floor = await _relayed(on, rate, options.seconds, turn)
                runs.append({**await _run(on, rate, options.seconds, turn), **floor})
            found[f"kafka, {rate}/s"] = medians(runs)
    with broker("embedded") as on:
        rate = options.rates[0]
        seconds = min(options.seconds, EMBEDDED_EVENTS / rate)
        found[f"embedded, {rate}/s"] = medians([await _run(on, rate, seconds, 0)])
    return found


async def _run(on: Broker, rate: int, seconds: float, turn: int) -> dict[str, float]:
    declared = Declared(f"latency{rate}-{turn}", every=2_000)
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    await write(on, versions(pipeline))
    count = int(rate * seconds)
    serving = Child.agents(on, declared, "ingest,score")
    learning = Child.agents(on, declared, "join,learn")
    async with running(serving), running(learning):
        await serving.until_at_work()
        await learning.until_at_work()
        before = serving.used(), learning.used()
        predictions = await _under_load(on, declared, rate, seconds, serving)
        after = serving.used(), learning.used()
        async with Topic(on, pipeline.topic("facts"), pipeline.partitions) as topic:
            facts = await topic.rows()
        async with Topic(on, pipeline.topic("models"), pipeline.model_partitions) as topic:
            published = len(manifests(await topic.rows()))
    return {
        **figures(predictions, facts, _warming(seconds)),
        "versions published": float(published),
        "cpu us, ingest and score": (after[0].cpu - before[0].cpu) / count * 1e6,
        "cpu us, join and learn": (after[1].cpu - before[1].cpu) / count * 1e6,
        "MB, ingest and score": after[0].most,
        "MB, join and learn": after[1].most,
    }


async def _relayed(on: Broker, rate: int, seconds: float, turn: int) -> dict[str, float]:
    declared = Declared(f"bare{rate}-{turn}")
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    events, facts, predictions = (pipeline.topic(each) for each in ("events", "facts", "predictions"))
    way = {"BENCH_BROKER": on.address, "BENCH_INPUT": events, "BENCH_HOPS": f"{facts} {predictions}"}
    relay = Child.spawn(["bench.peers.relay"], {**way, "BENCH_PARTITIONS": str(pipeline.partitions)})
    async with running(relay):
        rows = await _under_load(on, declared, rate, seconds, relay)
    # Outcomes stand among the events, and are passed on, too; their time is when they were sent.
    said = [(each.time.timestamp() * 1000, row.ms) for row in rows for each in [_timed(row)]]
    start = min(due for due, _ in said) + _warming(seconds) * 1000
    return _percentiles("bare", [at - due for due, at in said if due >= start])


async def _under_load(on: Broker, declared: Declared, rate: int, seconds: float, child: Child) -> list[Row]:
    """What stands on `predictions` once the child has answered as many events as that are."""
    pipeline = declared.pipeline()
    load = {**declared.environment(), "BENCH_BROKER": on.address}
    producer = Child.spawn(["bench.load"], {**load, "BENCH_RATE": str(rate), "BENCH_SECONDS": str(seconds)})
    async with running(producer), Topic(on, pipeline.topic("predictions"), pipeline.partitions) as topic:
        await topic.until(int(rate * seconds), child, looks=0.25)
        return await topic.rows()


def _warming(seconds: float) -> float:
    return min(5.0, WARMING * seconds)


def figures(predictions: Sequence[Row], facts: Sequence[Row], left_out: float) -> dict[str, float]:
    """Percentiles of the whole way and of its two hops, in ms, without the first `left_out` seconds."""
    said = {each.id: (each.time.timestamp() * 1000, row.ms) for row in predictions for each in [_timed(row)]}
    written = {_timed(row).id: row.ms for row in facts}
    start = min(due for due, _ in said.values()) + left_out * 1000
    ways, firsts, seconds = [], [], []
    for id, (due, at) in said.items():
        if due >= start and id in written:
            ways.append(at - due)
            firsts.append(written[id] - due)
            seconds.append(float(at - written[id]))
    return {
        **_percentiles("event to prediction", ways),
        **_percentiles("to fact", firsts),
        **_percentiles("fact to prediction", seconds),
        "event to prediction, most ms": max(ways),
        "predictions": float(len(ways)),
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    shares = ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9"))
    return {f"{name}, {called} ms": percentile(ordered, share) for share, called in shares}


def _timed(row: Row) -> Timed:
    return msgspec.json.decode(row.value, type=Timed)
