"""No event can stop an agent: what a broker would refuse of its outputs becomes a dead letter beforehand.

An event of a megabyte is accepted, its fact is refused, and so would be a dead letter that holds it in
base64: the agent restarts, reads it again, and so on for ever. So the original's bytes are the dead
letter's value as they are, `dead` admits more than `events`, and what fits no fact is known before
anything is sent. A producer whose clock is two hours ahead would be refused, too: topics take append time.
"""

from __future__ import annotations

import time

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from riverkeeper.agents.ingest import Ingest
from riverkeeper.topics.catalog import EVENT_BYTES
from riverkeeper.topics.log import DeliveryError
from riverkeeper.topics.messages import ErrorCode
from tests.agents.loop import everything, fact_ids, made
from tests.agents.tiny import runtime, sale
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.without import Remedy

REMEDIES = [
    Remedy(
        "agents/work.py",
        "value, original = record.value, record.headers",
        'value, original = __import__("base64").b64encode(record.value or b""), record.headers',
        what="raw bytes",
    ),
    Remedy(
        "topics/catalog.py",
        '"dead": _delete(LONG) | {"max.message.bytes": str(MAX_DEAD_BYTES)},',
        '"dead": _delete(LONG),',
    ),
    Remedy("topics/catalog.py", '"LogAppendTime"', '"CreateTime"'),
    Remedy(
        "agents/ingest.py",
        "        if len(value) > MAX_RECORD_BYTES:\n",
        "        if len(value) > 10 * MAX_RECORD_BYTES:\n",
        also=(
            Remedy(
                "agents/ingest.py",
                "        if FACT_ROOM + len(parsed.key) + len(parsed.value) > MAX_RECORD_BYTES:\n",
                "        if FACT_ROOM + len(parsed.key) + len(parsed.value) > 10 * MAX_RECORD_BYTES:\n",
            ),
        ),
        what="refused beforehand",
    ),
]

HOUR_MS = 3_600_000
POISON = {
    b"a megabyte": sale(1, note="x" * 1_000_000),
    b"all there is room for": b"\xff" * (EVENT_BYTES - 200),
    b"no bytes at all": None,
}


async def send(producer: AIOKafkaProducer, topic: str, value: bytes | None, key: bytes, at_ms: int) -> None:
    try:
        await producer.send_and_wait(topic, value, key=key, partition=0, timestamp_ms=at_ms)
    except KafkaError as error:
        pytest.fail(f"the log has not taken {key.decode()}: {error!r}")


async def test_each_poison_costs_one_dead_letter_with_its_bytes(real: Broker) -> None:
    async with made(real, partitions=1) as pipeline:
        events, now = pipeline.topic("events"), int(time.time() * 1000)
        producer = AIOKafkaProducer(bootstrap_servers=real.address, max_request_size=2 * EVENT_BYTES)
        await producer.start()
        try:
            for key, value in POISON.items():
                await send(producer, events, value, key, now)
            await send(producer, events, sale(2), b"two hours ahead", now + 2 * HOUR_MS)
            await send(producer, events, sale(3), b"in order", now)
        finally:
            await producer.stop()
        async with ByHand(Ingest(runtime(pipeline, real, limits=BY_HAND))) as ingest:
            await ingest.take_over(0)
            try:
                await ingest.read_to(events, len(POISON) + 2)
            except DeliveryError as error:
                pytest.fail(f"every restart would end here again: {error}")
        dead = await everything(real, pipeline, "dead")
        assert {record.key: record.value for record in dead} == POISON
        assert {dict(record.headers)["code"].decode() for record in dead} == {
            ErrorCode.TOO_LARGE,
            ErrorCode.NOT_JSON,
        }
        assert await fact_ids(real, pipeline) == [2, 3]
