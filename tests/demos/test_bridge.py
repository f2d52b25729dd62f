"""The bridge copies a topic whole, keys and partitions included, goes on with what comes, and no faster than there is room."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from riverkeeper.demos.bridge import Bridge
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.embedded import EmbeddedBroker

PARTITIONS = 3
WAIT_SECONDS = 30.0  # for what takes milliseconds


class Topics:
    """A source and a target on an embedded broker."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.connection = Connection(broker.address)
        for topic in ("source", "target"):
            broker.create_topic(topic, PARTITIONS)

    async def write(self, first: int, end: int) -> None:
        producer = AIOKafkaProducer(**self.connection.client_options())
        await producer.start()
        try:
            for n in range(first, end):
                await producer.send_and_wait("source", b"%d" % n, b"dog%d" % (n % 7))
        finally:
            await producer.stop()

    async def read(self, topic: str) -> list[tuple[int, bytes, bytes]]:
        """(partition, key, value) of all records, by partition and offset."""
        tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        async with AIOKafkaConsumer(**self.connection.client_options()) as consumer:
            consumer.assign(tps)
            await consumer.seek_to_beginning(*tps)
            ends = await consumer.end_offsets(tps)
            found = []
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for tp, records in (await consumer.getmany(timeout_ms=50)).items():
                    found += [(tp.partition, record.offset, record.key, record.value) for record in records]
        return [(partition, key, value) for partition, _, key, value in sorted(found)]


@pytest.fixture
def topics() -> Iterator[Topics]:
    with EmbeddedBroker() as broker:
        yield Topics(broker)


@asynccontextmanager
async def running(bridge: Bridge) -> AsyncIterator[None]:
    task = asyncio.create_task(bridge.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_it_copies_from_the_beginning_and_follows(topics: Topics) -> None:
    await topics.write(0, 50)
    bridge = Bridge(topics.connection, "source", "target", PARTITIONS, lambda: 1_000)
    async with running(bridge):
        await until(lambda: bridge.copied == 50)
        await topics.write(50, 80)
        await until(lambda: bridge.copied == 80)
    assert await topics.read("target") == await topics.read("source")


async def test_it_waits_for_room(topics: Topics) -> None:
    await topics.write(0, 50)
    room = 20
    bridge = Bridge(topics.connection, "source", "target", PARTITIONS, lambda: room - bridge.copied)
    async with running(bridge):
        await until(lambda: bridge.copied == 20)
        assert len(await topics.read("target")) == 20
        room = 60
        await until(lambda: bridge.copied == 50)
