"""Short ways to make, fill, read and truncate a topic, on either kind of broker."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.admin.records_to_delete import RecordsToDelete

from riverkeeper.topics.catalog import Catalog, Replication, TopicSpec, create_embedded
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import FencedWriter, Membership, Out, Reader, Record, Writer
from riverkeeper.topics.store import Inspector
from tests.brokers.broker import Broker

DEADLINE = 30.0  # s for what takes well below one on an idle machine
ONE_NODE = Replication(factor=1, min_insync=1)
PRODUCE, MESSAGE_TOO_LARGE = 0, 10  # of the Kafka protocol
SMALL = {"max.message.bytes": "600000"}
SESSION_MS = 6_000


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
async def reading(broker: Broker, *, linger_ms: int = 0) -> AsyncIterator[Reader]:
    reader = Reader(connection(broker), linger_ms=linger_ms)
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


async def add_partitions(broker: Broker, name: str, total: int) -> None:
    """What an operator does by hand; on Kafka."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    try:
        await admin.create_partitions({name: NewPartitions(total_count=total)})

        async def there() -> bool:
            (found,) = await admin.describe_topics([name])
            return len(found["partitions"]) == total

        await until(there)
    finally:
        await admin.close()


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


def refuse_next(broker: Broker, *codes: int) -> None:
    """Kafka refuses by the topic's own limit; the embedded broker has to be told."""
    if broker.embedded is not None:
        broker.embedded.push_request_errors(PRODUCE, list(codes))


def large(name: str, size: int, partition: int = 0) -> Out:
    return Out(name, partition, None, b"x" * size)


class Member:
    """A seat in a group, and what it was told."""

    def __init__(self, broker: Broker, group: str, topics: list[str], log: list[str], name: str) -> None:
        self.name = name
        self.owned: frozenset[TopicPartition] = frozenset()
        self.hold = 0.0  # seconds that letting go takes
        self._log = log
        self.membership = Membership(
            connection(broker),
            group,
            topics,
            assigned=self._assigned,
            revoked=self._revoked,
            session_timeout_ms=SESSION_MS,
        )

    async def _assigned(self, partitions: frozenset[TopicPartition]) -> None:
        self._log.append(f"{self.name} assigned")
        self.owned = partitions

    async def _revoked(self) -> None:
        await asyncio.sleep(self.hold)
        self._log.append(f"{self.name} let go")
        self.owned = frozenset()

    def numbers(self, name: str) -> set[int]:
        return {tp.partition for tp in self.owned if tp.topic == name}


@asynccontextmanager
async def seated(
    broker: Broker, group: str, topics: list[str], log: list[str], name: str = "a"
) -> AsyncIterator[Member]:
    member = Member(broker, group, topics, log, name)
    await member.membership.start()
    watching = asyncio.create_task(member.membership.watch())
    try:
        yield member
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await member.membership.stop()
