"""Short ways to make, fill, read and truncate a topic, on either kind of broker."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from riverkeeper.topics.catalog import Catalog, Replication, TopicSpec, create_embedded
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import FencedWriter, Out, Reader, Record, Writer
from riverkeeper.topics.store import Inspector
from tests.brokers.broker import Broker

DEADLINE = 30.0  # s for what takes well below one on an idle machine
ONE_NODE = Replication(factor=1, min_insync=1)


def connection(broker: Broker) -> Connection:
    return Connection(broker.address)


async def create(broker: Broker, *specs: TopicSpec) -> None:
    if broker.embedded is not None:
        create_embedded(broker.embedded, specs)
        return
    async with Catalog(connection(broker), ONE_NODE) as catalog:
        await catalog.create(specs)


async def topic(broker: Broker, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
    """A new one, under a name that no other test has."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    await create(broker, TopicSpec(name, partitions, config or {}))
    return name


@asynccontextmanager
async def writing(broker: Broker) -> AsyncIterator[Writer]:
    writer = Writer(connection(broker))
    await writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


@asynccontextmanager
async def owning(broker: Broker, transactional_id: str) -> AsyncIterator[FencedWriter]:
    writer = FencedWriter(connection(broker), transactional_id, transactions=broker.transactions)
    await writer.start()
    try:
        yield writer
    finally:
        await writer.stop()


@asynccontextmanager
async def reading(broker: Broker) -> AsyncIterator[Reader]:
    reader = Reader(connection(broker))
    await reader.start()
    try:
        yield reader
    finally:
        await reader.stop()


async def fill(broker: Broker, name: str, values: Iterable[bytes], partition: int = 0) -> None:
    async with writing(broker) as writer:
        await writer.write([Out(name, partition, None, value) for value in values])


async def records(broker: Broker, name: str, partition: int = 0) -> list[Record]:
    """All that a reader of committed records sees now."""
    async with Inspector(connection(broker)) as inspector:
        return await inspector.read_all(TopicPartition(name, partition))


async def values(broker: Broker, name: str, partition: int = 0) -> list[bytes | None]:
    return [record.value for record in await records(broker, name, partition)]


async def forget_below(broker: Broker, tp: TopicPartition, offset: int) -> None:
    """What retention does, at once."""
    if broker.embedded is not None:
        broker.embedded.delete_records(tp.topic, tp.partition, offset)
        return
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        await admin.delete_records({tp: RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


async def until(condition: Callable[[], Awaitable[bool] | bool], seconds: float = DEADLINE) -> None:
    """Waits until it holds; fails after the deadline."""
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.02)


async def take(
    reader: Reader, count: int, only: Sequence[TopicPartition], max_records: int = 1_000
) -> dict[TopicPartition, list[Record]]:
    """Polls until so many records have come."""
    got: dict[TopicPartition, list[Record]] = {}
    async with asyncio.timeout(DEADLINE):
        while sum(map(len, got.values())) < count:
            for tp, came in (await reader.poll(only, max_records=max_records, timeout_ms=100)).items():
                got.setdefault(tp, []).extend(came)
    return got
