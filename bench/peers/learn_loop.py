"""The loop one writes by hand to learn: aiokafka in, orjson, `learn_one`. Says its rate, and what its
first estimator answers to some rows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import orjson
from aiokafka import AIOKafkaConsumer
from river import linear_model, preprocessing

from bench.peers.answer import NUMBERS


async def main() -> None:
    count = int(os.environ["BENCH_COUNT"])
    first = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    baseline = linear_model.LogisticRegression()
    consumer = AIOKafkaConsumer(
        os.environ["BENCH_INPUT"],
        bootstrap_servers=os.environ["BENCH_BROKER"],
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=2_000_000,
    )
    await consumer.start()
    done, began, after = 0, 0.0, 0
    while done < count:
        for records in (await consumer.getmany(timeout_ms=100, max_records=2_000)).values():
            for record in records:
                example = orjson.loads(record.value)
                numbers = {name: example["features"][name] for name in NUMBERS}
                first.learn_one(numbers, example["label"])
                baseline.learn_one({"x0": numbers["x0"]}, example["label"])
            done += len(records)
        if done and not began:
            began, after = time.perf_counter(), done
    seconds, learned = time.perf_counter() - began, max(1, done - after)
    rows = json.loads(os.environ["BENCH_ROWS"])
    said = [first.predict_proba_one(row)[True] for row in rows]
    sys.stdout.write(json.dumps({"rate": learned / seconds, "said": said}) + "\n")
    await consumer.stop()


asyncio.run(main())
