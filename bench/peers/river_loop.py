"""The loop one writes by hand: aiokafka in, orjson, River's own answer, orjson, aiokafka out.

At least once: positions are committed after every batch has been delivered.
"""

from __future__ import annotations

import asyncio
import os
import pickle
from pathlib import Path

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.peers.answer import NUMBERS

model = pickle.loads(Path(os.environ["BENCH_ESTIMATOR"]).read_bytes())
OUTPUT = os.environ["BENCH_OUTPUT"]


async def main() -> None:
    broker = os.environ["BENCH_BROKER"]
    consumer = AIOKafkaConsumer(
        os.environ["BENCH_INPUT"],
        bootstrap_servers=broker,
        group_id=OUTPUT,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=2_000_000,
    )
    producer = AIOKafkaProducer(bootstrap_servers=broker, acks="all", linger_ms=5, max_batch_size=900_000)
    await consumer.start()
    await producer.start()
    while True:
        sent = []
        for records in (await consumer.getmany(timeout_ms=100, max_records=4_000)).values():
            for record in records:
                fact = orjson.loads(record.value)
                data = fact["data"]
                chances = model.predict_proba_one({name: data[name] for name in NUMBERS})
                said = orjson.dumps({"id": fact["id"], "key": data["order"], "value": chances[True]})
                sent.append(await producer.send(OUTPUT, said, key=data["order"].encode()))
        if sent:
            await asyncio.gather(*sent)
            await consumer.commit()


asyncio.run(main())
