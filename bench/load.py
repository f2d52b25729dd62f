"""A producer with a schedule: `python -m bench.load`, told by its environment.

Event i is due at `i / rate`; what it says as its time is when it was due, not when it was sent, so that
a producer or broker that falls behind shows as latency and not as a lower rate. Of every tenth fact the
outcome follows a second later.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import UTC, datetime

import msgspec

from bench.work import DECLARED, Declared, event, measured, order, outcome
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Out, Writer
from riverkeeper.topics.partition import partition

AHEAD = 0.5  # s between the start and the first event
LABELLED = 10  # of so many facts one has an outcome
LAG = 1.0  # s from a fact to its outcome
TICK = 0.001  # s


async def main() -> None:
    pipeline = msgspec.json.decode(os.environ[DECLARED], type=Declared).pipeline()
    rate, seconds = float(os.environ["BENCH_RATE"]), float(os.environ["BENCH_SECONDS"])
    topic, count = pipeline.topic(os.environ.get("BENCH_SUFFIX", "events")), int(rate * seconds)
    first = int(os.environ.get("BENCH_FIRST", "0"))
    devices = {m.device: partition(m.device.encode(), pipeline.partitions) for m, _ in measured()}
    writer = Writer(Connection(os.environ["BENCH_BROKER"]))
    await writer.start()
    began = time.time() + AHEAD
    sent = told = 0
    while sent < count or told * LABELLED < count:
        due = min(count, int((time.time() - began) * rate))
        outs = []
        for i in range(sent, due):
            device = measured()[i % len(measured())][0].device
            value = event(first + i, datetime.fromtimestamp(began + i / rate, UTC))
            outs.append(Out(topic, devices[device], device.encode(), value))
        sent = max(sent, due)
        while told * LABELLED < min(count, (time.time() - began - LAG) * rate):
            i = first + told * LABELLED
            key = order(i).encode()
            value = outcome(i, datetime.fromtimestamp(time.time(), UTC))
            outs.append(Out(topic, partition(key, pipeline.partitions), key, value))
            told += 1
        if outs:
            await writer.write(outs)
        await asyncio.sleep(TICK)
    await writer.stop()


if __name__ == "__main__":
    asyncio.run(main())
