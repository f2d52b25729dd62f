"""The floor of two hops through Kafka here: aiokafka passes on what it fetches, twice, and looks at nothing.

Reads `BENCH_INPUT`, writes it to the topics of `BENCH_HOPS`, one after the other, until it is stopped.
"""

from __future__ import annotations

import asyncio
import os

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

MAX_BATCH = 2_000  # records, as the agents' own


async def hop(source: str, target: str, partitions: int) -> None:
    broker = os.environ["BENCH_BROKER"]
    consumer = AIOKafkaConsumer(bootstrap_servers=broker, enable_auto_commit=False, fetch_max_wait_ms=100)
    producer = AIOKafkaProducer(bootstrap_servers=broker, acks="all", enable_idempotence=True)
    async with consumer, producer:
        tps = [TopicPartition(source, p) for p in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_beginning(*tps)
        while True:
            futures = []
            for tp, records in (await consumer.getmany(timeout_ms=100, max_records=MAX_BATCH)).items():
                batch = producer.create_batch()
                for record in records:
                    if batch.append(key=record.key, value=record.value, timestamp=record.timestamp) is None:
                        futures.append(await producer.send_batch(batch, target, partition=tp.partition))
                        batch = producer.create_batch()
                        batch.append(key=record.key, value=record.value, timestamp=record.timestamp)
                futures.append(await producer.send_batch(batch, target, partition=tp.partition))
            for future in futures:
                await future


async def main() -> None:
    partitions = int(os.environ["BENCH_PARTITIONS"])
    way = [os.environ["BENCH_INPUT"], *os.environ["BENCH_HOPS"].split()]
    async with asyncio.TaskGroup() as hops:
        for source, target in zip(way, way[1:], strict=False):
            hops.create_task(hop(source, target, partitions))


asyncio.run(main())
