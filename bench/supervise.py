"""What a supervisor of a hundred models costs: share of a core, health written, and the way back after a kill.

Vitals come once a second from each model's scorer and learner, and from ingest, score and join for the pipeline.
Their contents are those that the agents' own code said of a simulated stream (tests/judgement); times and spans are
rewritten to be now's. How many facts a window had does not change a record's size: sketches are of a sample.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from typing import Any

from bench.harness import Broker, Child, Options, Topic, broker, medians, prepare, running, write
from bench.work import Declared
from riverkeeper.topics.log import Out
from riverkeeper.topics.messages import Span, Vitals
from riverkeeper.topics.vitals import pack
from tests.judgement.story import warm

MODELS = 100
FACTS = 1_000  # of a window; one after the other, as agents cover them
SETTLED_S = 3.0  # until the first windows are folded
TOLD = 30  # windows of the simulated stream, told one after the other and then again


async def measure(options: Options) -> dict[str, Any]:
    windows = await asyncio.to_thread(_told)  # which has a loop of its own
    with broker("kafka") as on:
        rounds = min(options.rounds, 3)
        runs = [await _run(on, windows, turn, min(options.seconds, 60.0)) for turn in range(rounds)]
    return {"kafka": {"models": MODELS, **medians(runs)}}


def _told() -> list[list[Vitals]]:
    world, windows = warm().again(), list[list[Vitals]]()

    def heard(vitals: Vitals) -> Vitals:
        windows[-1].append(vitals)
        return vitals

    world.report = heard
    for _ in range(TOLD):
        windows.append([])
        world.window()
    world.close()
    return windows


async def _run(on: Broker, windows: list[list[Vitals]], turn: int, seconds: float) -> dict[str, float]:
    declared = Declared(f"supervise{turn}", models=MODELS - 1)
    pipeline = declared.pipeline()
    await prepare(on, pipeline)
    child = Child.agents(on, declared, "supervisor")
    async with running(child):
        await child.until_at_work()
        feed = asyncio.create_task(_feed(on, pipeline.name, list(pipeline.models), windows))
        await asyncio.sleep(SETTLED_S)
        before, began = child.used(), time.monotonic()
        await asyncio.sleep(seconds)
        after, took = child.used(), time.monotonic() - began
        child.check()
        child.end(signal.SIGKILL)
        again = Child.agents(on, declared, "supervisor")
        async with running(again):
            await again.until_at_work()
            back = time.time() - again.spawned
        feed.cancel()
        await asyncio.gather(feed, return_exceptions=True)
    async with Topic(on, f"{pipeline.name}.supervisor.store", 1) as store:
        rows = await store.rows()
    async with Topic(on, f"{pipeline.name}.incidents", 1) as incidents:
        alarms = len({row.key for row in await incidents.rows()})
    health = sum(len(row.value) for row in rows)
    return {
        "% of a core": 100 * (after.cpu - before.cpu) / took,
        "vitals per s": len(pipeline.models) * 2 + 3.0,
        "kB of health per s": health / 1000 / (SETTLED_S + took),
        "kB of health per model": health / 1000 / max(1, len(rows)),
        "MB resident": after.resident,
        "s to be at work again after kill -9": back,
        "alarms": float(alarms),
    }


async def _feed(on: Broker, name: str, models: list[str], windows: list[list[Vitals]]) -> None:
    """A window each second, until it is cancelled."""
    due, n = time.monotonic(), 0
    while True:
        now = int(time.time() * 1000)
        outs = _window(windows[n % len(windows)], models, n, now)
        await write(on, (Out(f"{name}.vitals", 0, key, value) for key, value in pack(outs)))
        due, n = due + 1.0, n + 1
        await asyncio.sleep(max(0.0, due - time.monotonic()))


def _window(window: list[Vitals], models: list[str], n: int, now: int) -> Iterator[Vitals]:
    for each in window:
        if each.model not in ("", "learned"):
            continue
        at = {"from_ms": now - 1_000, "to_ms": now, "event_ms": now if each.event_ms else 0}
        spans = (Span(0, n * FACTS, (n + 1) * FACTS),) if each.spans else ()
        for model in models if each.model else [""]:
            yield each.model_copy(update={**at, "model": model, "spans": spans, "version": n // 10 + 1})
