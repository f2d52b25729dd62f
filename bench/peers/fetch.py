"""The floor of any Python consumer here: aiokafka's fetch and orjson's decode, and nothing done with it.

Says on standard output how many records a second that were.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import orjson
from aiokafka import AIOKafkaConsumer


async def main() -> None:
    count = int(os.environ["BENCH_COUNT"])
    consumer = AIOKafkaConsumer(
        os.environ["BENCH_INPUT"],
        bootstrap_servers=os.environ["BENCH_BROKER"],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=2_000_000,
    )
    await consumer.start()
    done = first = 0
    began, cpu = 0.0, 0.0
    while done < count:
        batches = await consumer.getmany(timeout_ms=100, max_records=4_000)
        for records in batches.values():
            for record in records:
                orjson.loads(record.value)
            done += len(records)
        if done and not began:
            began, cpu, first = time.perf_counter(), time.process_time(), done
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    after = max(1, done - first)  # a topic that is one batch tells no rate
    sys.stdout.write(json.dumps({"rate": after / seconds, "cpu": used / after}) + "\n")
    await consumer.stop()


asyncio.run(main())
