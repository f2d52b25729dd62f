"""A tape written to a broker as a second family of topics: every record at its own offset and time.

Offsets that a reader skips are made as Kafka makes them: a transaction's marker takes one, and what an
aborted transaction wrote takes its own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from riverkeeper import Pipeline
from riverkeeper.audit.report import Topic
from riverkeeper.process import topics_of
from riverkeeper.topics.connection import Connection
from tests.audit.tape import Rec, Tape
from tests.system.pipelines import gauges

STORES = {
    "ingest.store": (Topic.EVENTS,),
    "score.store": (Topic.FACTS,),
    "join.store": (Topic.PREDICTIONS, Topic.OUTCOMES),
}


async def forged(address: str, tape: Tape) -> Pipeline:
    """The pipeline whose topics hold the tape."""
    old = tape.pipeline.name
    # As long as the old one: names stand in records, and sizes are on record, too.
    pipeline = gauges(f"gauges-{uuid.uuid4().hex[: len(old) - len('gauges-')]}")
    await _create(address, pipeline)
    options = {"bootstrap_servers": address, "acks": "all", "enable_idempotence": True}
    plain = AIOKafkaProducer(**options)
    atomic = AIOKafkaProducer(**options, transactional_id=pipeline.name)
    await plain.start()
    await atomic.start()
    try:
        for topic, partitions in tape.topics.items():
            for partition, records in enumerate(partitions):
                renamed = [_renamed(each, old, pipeline.name) for each in records]
                await _write(plain, atomic, pipeline.topic(topic.suffix), partition, renamed)
        await _heads(plain, tape, pipeline)
    finally:
        await plain.stop()
        await atomic.stop()
    return pipeline


async def _create(address: str, pipeline: Pipeline) -> None:
    admin = AIOKafkaAdminClient(**Connection(address).client_options())
    await admin.start()
    try:
        times = {"message.timestamp.type": "CreateTime"}
        await admin.create_topics(
            [NewTopic(s.name, s.partitions, 1, topic_configs=times) for s in topics_of(pipeline)]
        )
    finally:
        await admin.close()


def _renamed(record: Rec, old: str, new: str) -> Rec:
    a, b = old.encode(), new.encode()
    headers = [(name, value.replace(a, b)) for name, value in record.headers]
    value = record.value.replace(a, b) if record.value is not None else None
    return Rec(new, record.partition, record.offset, record.timestamp, record.key, value, headers)


async def _write(
    plain: AIOKafkaProducer, atomic: AIOKafkaProducer, topic: str, partition: int, records: Sequence[Rec]
) -> None:
    at = 0
    for run, after in _runs(records):
        if run[0].offset - at >= 2:
            await atomic.begin_transaction()
            await _send(atomic, topic, partition, [run[0]] * (run[0].offset - at - 1))
            await atomic.abort_transaction()
        if after == 1:
            async with atomic.transaction():
                await _send(atomic, topic, partition, run)
        else:
            await _send(plain, topic, partition, run)
        at = run[-1].offset + (2 if after == 1 else 1)


def _runs(records: Sequence[Rec]) -> list[tuple[list[Rec], int]]:
    """Records without a gap, and the offsets left out after them."""
    runs: list[tuple[list[Rec], int]] = []
    run: list[Rec] = []
    for record in records:
        if run and record.offset != run[-1].offset + 1:
            runs.append((run, record.offset - run[-1].offset - 1))
            run = []
        run.append(record)
    return [*runs, (run, 0)] if run else runs


async def _send(producer: AIOKafkaProducer, topic: str, partition: int, records: Sequence[Rec]) -> None:
    sending = [
        await producer.send(
            topic, r.value, r.key, partition, timestamp_ms=r.timestamp, headers=list(r.headers)
        )
        for r in records
    ]
    await asyncio.gather(*sending)


async def _heads(producer: AIOKafkaProducer, tape: Tape, pipeline: Pipeline) -> None:
    """What the agents last said of how far they were."""
    for store, inputs in STORES.items():
        for partition in range(pipeline.partitions):
            positions = {
                f"{pipeline.topic(topic.suffix)}/{partition}": tape.positions[topic, partition]
                for topic in inputs
            }
            head = msgspec.json.encode({"revision": pipeline.revision, "positions": positions})
            await producer.send_and_wait(pipeline.topic(store), head, b"head", partition)
