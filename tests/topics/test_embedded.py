"""What the embedded broker promises, and the limits it admits to, seen through aiokafka."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

from riverkeeper.topics.embedded import (
    AUTO_PARTITIONS,
    MAX_BATCH_BYTES,
    RETAINED_BYTES,
    EmbeddedBroker,
    EmbeddedBrokerError,
    PatientRangeAssignor,
    is_embedded,
)

DEADLINE = 15.0  # s for what takes well below one on an idle machine
PRODUCE, TOPIC_AUTHORIZATION_FAILED = 0, 29  # of the Kafka protocol


@pytest.fixture
def own() -> Iterator[EmbeddedBroker]:
    """A broker of three that the test may break."""
    with EmbeddedBroker(brokers=3) as broker:
        yield broker


@asynccontextmanager
async def producing(address: str, **settings: object) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True, acks="all", **settings)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@asynccontextmanager
async def reading(address: str, partition: TopicPartition, start: int = 0) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group, at that offset, that resets nothing by itself."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address,
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_wait_ms=100,
    )
    await consumer.start()
    try:
        consumer.assign([partition])
        consumer.seek(partition, start)
        yield consumer
    finally:
        await consumer.stop()


async def describe(address: str) -> str:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        return str((await admin.describe_cluster())["cluster_id"])
    finally:
        await admin.close()


async def partitions_of(address: str, topic: str) -> int:
    async with producing(address) as producer:
        return len(await producer.partitions_for(topic))


async def test_its_cluster_id_tells_it_from_kafka(embedded: EmbeddedBroker) -> None:
    assert is_embedded(await describe(embedded.address))
    assert not is_embedded("4L6g3nShT-eMCtK--X86sw")
    assert not is_embedded(None)


async def test_a_topic_can_be_created_twice_but_not_with_another_count(embedded: EmbeddedBroker) -> None:
    embedded.create_topic("twice", 3)
    embedded.create_topic("twice", 3)
    with pytest.raises(EmbeddedBrokerError, match="'twice' has 3 partitions, not 2"):
        embedded.create_topic("twice", 2)
    assert await partitions_of(embedded.address, "twice") == 3


async def test_a_client_that_asks_first_decides_the_partition_count(embedded: EmbeddedBroker) -> None:
    assert await partitions_of(embedded.address, "asked-for") == AUTO_PARTITIONS
    embedded.create_topic("asked-for", AUTO_PARTITIONS)
    with pytest.raises(EmbeddedBrokerError, match="a client asked for it first"):
        embedded.create_topic("asked-for", AUTO_PARTITIONS + 1)


async def test_records_come_back_in_order_with_key_headers_and_time(embedded: EmbeddedBroker) -> None:
    embedded.create_topic("round-trip", 2)
    partition = TopicPartition("round-trip", 1)
    async with producing(embedded.address) as producer:
        batch = producer.create_batch()
        for i in range(3):
            batch.append(
                key=b"k%d" % i, value=b"v%d" % i, timestamp=1_700_000_000_000 + i, headers=[("origin", b"x")]
            )
        await (await producer.send_batch(batch, partition.topic, partition=1))
        await producer.send_and_wait(partition.topic, b"v3", partition=1)
    async with reading(embedded.address, partition) as consumer:
        records = [await asyncio.wait_for(consumer.getone(), DEADLINE) for _ in range(4)]
        assert await consumer.end_offsets([partition]) == {partition: 4}
    assert [(r.offset, r.value) for r in records] == [(i, b"v%d" % i) for i in range(4)]
    first = records[0]
    assert (first.key, first.timestamp, first.headers) == (b"k0", 1_700_000_000_000, (("origin", b"x"),))


async def test_a_partition_keeps_its_newest_records_and_says_when_older_ones_are_asked_for(
    embedded: EmbeddedBroker,
) -> None:
    embedded.create_topic("retained", 1)
    partition, size, count = TopicPartition("retained", 0), 100_000, 60
    async with producing(embedded.address) as producer:
        for i in range(count):
            await producer.send_and_wait(partition.topic, i.to_bytes(2) + bytes(size), partition=0)
    async with reading(embedded.address, partition) as consumer:
        start = (await consumer.beginning_offsets([partition]))[partition]
        assert RETAINED_BYTES - 2 * size < (count - start) * size <= RETAINED_BYTES
        with pytest.raises(OffsetOutOfRangeError):
            await asyncio.wait_for(consumer.getone(), DEADLINE)
        consumer.seek(partition, start)
        assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).value[:2] == start.to_bytes(2)


async def test_batches_up_to_the_limit_are_readable_and_larger_ones_lost(embedded: EmbeddedBroker) -> None:
    embedded.create_topic("large", 1)
    partition, overhead = TopicPartition("large", 0), 1_000
    async with producing(embedded.address, max_request_size=RETAINED_BYTES) as producer:
        for offset in range(4):
            await producer.send_and_wait(partition.topic, bytes(MAX_BATCH_BYTES - overhead), partition=0)
            async with reading(embedded.address, partition, offset) as consumer:
                assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).offset == offset
        await producer.send_and_wait(partition.topic, bytes(MAX_BATCH_BYTES + overhead), partition=0)
    async with reading(embedded.address, partition, 4) as consumer:
        with pytest.raises(OffsetOutOfRangeError):
            await asyncio.wait_for(consumer.getone(), DEADLINE)


async def test_deleted_records_are_a_gap(embedded: EmbeddedBroker) -> None:
    embedded.create_topic("gap", 1)
    partition = TopicPartition("gap", 0)
    async with producing(embedded.address) as producer:
        for i in range(4):
            await producer.send_and_wait(partition.topic, b"%d" % i, partition=0)
    embedded.delete_records("gap", 0, before=3)
    async with reading(embedded.address, partition) as consumer:
        assert await consumer.beginning_offsets([partition]) == {partition: 3}
        with pytest.raises(OffsetOutOfRangeError):
            await asyncio.wait_for(consumer.getone(), DEADLINE)


async def test_a_member_that_leaves_hands_on_its_committed_offset(embedded: EmbeddedBroker) -> None:
    embedded.create_topic("committed", 1)
    partition = TopicPartition("committed", 0)
    async with producing(embedded.address) as producer:
        for i in range(5):
            await producer.send_and_wait(partition.topic, b"%d" % i, partition=0)
    async with member(embedded.address, "committed") as first:
        await first.commit({partition: 3})
    async with member(embedded.address, "committed") as second:
        assert (await asyncio.wait_for(second.getone(), DEADLINE)).offset == 3


async def test_members_share_both_topics_range_wise_and_take_over(embedded: EmbeddedBroker) -> None:
    """The second member has its own loop, as in a process of its own; see PatientRangeAssignor."""
    for topic in ("left", "right"):
        embedded.create_topic(topic, 4)
    async with member(embedded.address, "left", "right") as first:
        await until(lambda: len(first.assignment()) == 8)
        with member_elsewhere(embedded.address, "left", "right") as second:
            await until(lambda: len(first.assignment()) == 4 and len(second.assignment) == 4)
            mine = {(p.topic, p.partition) for p in first.assignment()}
            theirs = {(p.topic, p.partition) for p in second.assignment}
            assert mine | theirs == {(topic, i) for topic in ("left", "right") for i in range(4)}
            assert {i for topic, i in mine if topic == "left"} == {i for topic, i in mine if topic == "right"}
        await until(lambda: len(first.assignment()) == 8)


async def test_a_broker_that_was_down_has_lost_nothing(own: EmbeddedBroker) -> None:
    own.create_topic("down", 1)
    async with producing(own.address) as producer:
        await producer.send_and_wait("down", b"before", partition=0)
        own.set_down()
        write = asyncio.create_task(producer.send_and_wait("down", b"meanwhile", partition=0))
        finished, _ = await asyncio.wait([write], timeout=0.5)
        assert not finished
        own.set_up()
        await asyncio.wait_for(write, DEADLINE)
    async with reading(own.address, TopicPartition("down", 0)) as consumer:
        assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).value == b"before"
        assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).value == b"meanwhile"


async def test_a_moved_leader_serves_what_the_lost_one_had(own: EmbeddedBroker) -> None:
    own.create_topic("moved", 1)
    own.set_leader("moved", 0, 1)
    async with producing(own.address) as producer:
        await producer.send_and_wait("moved", b"before", partition=0)
        own.set_down(1)
        own.set_leader("moved", 0, 2)
        await asyncio.wait_for(producer.send_and_wait("moved", b"after", partition=0), DEADLINE)
    async with reading(own.address, TopicPartition("moved", 0)) as consumer:
        assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).value == b"before"
        assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).value == b"after"


async def test_an_injected_delivery_error_is_raised_and_nothing_is_written(own: EmbeddedBroker) -> None:
    own.create_topic("refused", 1)
    partition = TopicPartition("refused", 0)
    async with producing(own.address) as producer:
        own.push_request_errors(PRODUCE, [TOPIC_AUTHORIZATION_FAILED])
        with pytest.raises(TopicAuthorizationFailedError):
            await producer.send_and_wait(partition.topic, b"x", partition=0)
    async with reading(own.address, partition) as consumer:
        assert await consumer.end_offsets([partition]) == {partition: 0}


async def test_a_lost_acknowledgement_duplicates_the_batch_idempotence_or_not(own: EmbeddedBroker) -> None:
    """Kafka would drop the second copy. What relies on that must be tested against Kafka."""
    own.create_topic("repeated", 1)
    partition = TopicPartition("repeated", 0)
    async with producing(own.address, request_timeout_ms=1_000) as producer:
        await producer.send_and_wait(partition.topic, b"first", partition=0)
        own.set_rtt(1_500)
        write = asyncio.create_task(producer.send_and_wait(partition.topic, b"second", partition=0))
        await asyncio.sleep(1.2)  # the first answer is due after its deadline, the second before
        own.set_rtt(0)
        await asyncio.wait_for(write, DEADLINE)
    async with reading(own.address, partition) as consumer:
        assert (await consumer.end_offsets([partition]))[partition] > 2


async def test_aborted_transactions_are_not_rolled_back(embedded: EmbeddedBroker) -> None:
    """The reason to run without transactions here. When this fails, librdkafka has learned them."""
    embedded.create_topic("aborted", 1)
    async with producing(embedded.address, transactional_id="aborted") as producer:
        await producer.begin_transaction()
        await producer.send_and_wait("aborted", b"never", partition=0)
        await producer.abort_transaction()
    async with reading(embedded.address, TopicPartition("aborted", 0)) as consumer:
        assert (await asyncio.wait_for(consumer.getone(), DEADLINE)).value == b"never"


def test_it_refuses_work_once_closed() -> None:
    broker = EmbeddedBroker()
    broker.close()
    broker.close()
    with pytest.raises(EmbeddedBrokerError, match="closed"):
        broker.create_topic("late", 1)


@pytest.mark.parametrize("brokers", [0, 10])
def test_the_number_of_brokers_is_bounded(brokers: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.9"):
        EmbeddedBroker(brokers)


@asynccontextmanager
async def member(address: str, *topics: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=address,
        group_id=f"group-{'-'.join(topics)}",
        partition_assignment_strategy=[PatientRangeAssignor],
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=1_500,  # a rebalance takes this less 1 s
        heartbeat_interval_ms=100,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.stop()


class _Elsewhere(threading.Thread):
    """A member on a loop of its own; `assignment` is what it holds at the moment."""

    def __init__(self, address: str, *topics: str) -> None:
        super().__init__()
        self._address, self._topics, self._leave = address, topics, threading.Event()
        self.assignment: frozenset[TopicPartition] = frozenset()

    def run(self) -> None:
        asyncio.run(self._stay())

    def leave(self) -> None:
        self._leave.set()
        self.join(DEADLINE)

    async def _stay(self) -> None:
        async with member(self._address, *self._topics) as consumer:
            while not self._leave.is_set():
                self.assignment = frozenset(consumer.assignment())
                await asyncio.sleep(0.02)


@contextmanager
def member_elsewhere(address: str, *topics: str) -> Iterator[_Elsewhere]:
    thread = _Elsewhere(address, *topics)
    thread.start()
    try:
        yield thread
    finally:
        thread.leave()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - other threads and aiokafka bring it about, and tell nobody
            await asyncio.sleep(0.02)
