"""A read that stands still ends by itself, and says whether its topic is gone or does not answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from riverkeeper.topics import patience
from riverkeeper.topics.catalog import TopicMissing
from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.patience import NoAnswer, Patience
from riverkeeper.topics.store import Inspector, LastRecord
from riverkeeper.topics.tail import Tail
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.topics.logs import DEADLINE, connection, fill, topic

Read = Callable[[Inspector, TopicPartition], Awaitable[object]]

READS: dict[str, Read] = {
    "read_all": lambda inspector, tp: inspector.read_all(tp),
    "read_table": lambda inspector, tp: inspector.read_table(tp),
    "range": lambda inspector, tp: inspector.range(tp),
    "check": lambda inspector, tp: inspector.check({tp: 1}, {tp: LastRecord(0, "")}),
    "beginnings": lambda inspector, tp: inspector.beginnings([tp]),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STILL_SECONDS", 1.0)


@pytest.fixture
def leaderless() -> Iterator[Broker]:
    """A broker of its own: its partitions lose their leader."""
    with EmbeddedBroker() as broker:
        yield Broker(broker.address, transactions=False, embedded=broker)


def lose_leader(broker: Broker, name: str) -> None:
    assert broker.embedded is not None
    broker.embedded.set_leader(name, 0, -1)


@pytest.mark.parametrize("read", READS)
async def test_a_partition_without_a_leader(leaderless: Broker, read: str) -> None:
    name = await topic(leaderless)
    await fill(leaderless, name, [b"0", b"1"])
    async with Inspector(connection(leaderless)) as inspector:
        lose_leader(leaderless, name)
        with pytest.raises(NoAnswer, match=f"{name}: no offsets for 1 s; has each partition a leader"):
            await asyncio.wait_for(READS[read](inspector, TopicPartition(name, 0)), DEADLINE)


@pytest.mark.parametrize("read", READS)
async def test_a_topic_that_is_gone(kafka: KafkaCluster, read: str) -> None:
    broker = Broker(kafka.address, transactions=True)
    tp = TopicPartition(await topic(broker), 0)
    await fill(broker, tp.topic, [b"0", b"1"])
    async with Inspector(connection(broker)) as inspector:
        assert await inspector.range(tp) == (0, 2)
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
        await admin.start()
        await admin.delete_topics([tp.topic])
        await admin.close()
        with pytest.raises(TopicMissing, match=tp.topic):
            await asyncio.wait_for(READS[read](inspector, tp), DEADLINE)


async def test_a_leader_that_goes_in_the_middle_of_a_read(leaderless: Broker) -> None:
    name = await topic(leaderless)
    await fill(leaderless, name, [b"0"])
    await fill(leaderless, name, [b"1"])
    async with Inspector(connection(leaderless)) as inspector:
        batches = inspector.batches(TopicPartition(name, 0))
        assert [r.value for r in await anext(batches)] == [
            b"0"
        ]  # the embedded broker gives one batch at a time
        lose_leader(leaderless, name)
        with pytest.raises(NoAnswer, match=f"{name}: nothing after 1 for 1 s"):
            async with asyncio.timeout(DEADLINE):
                async for _ in batches:
                    pass


async def test_a_tail_that_starts_reads_up_or_syncs_without_a_leader(leaderless: Broker) -> None:
    name = await topic(leaderless)
    await fill(leaderless, name, [b"0"])
    tail = Tail(connection(leaderless), name, lambda record: None)
    late = Tail(connection(leaderless), name, lambda record: None)
    try:
        await tail.start()
        lose_leader(leaderless, name)
        for read in (tail.read_up, tail.sync, late.start):
            with pytest.raises(NoAnswer, match=re.escape(name)):
                await asyncio.wait_for(read(), DEADLINE)
    finally:
        await tail.stop()
        await late.stop()


async def test_a_sync_of_a_tail_that_nobody_runs(kafka: KafkaCluster) -> None:
    broker = Broker(kafka.address, transactions=True)
    name = await topic(broker)
    tail = Tail(connection(broker), name, lambda record: None)
    await tail.start()
    try:
        await asyncio.wait_for(tail.sync(), DEADLINE)  # of nothing
        await fill(broker, name, [b"0"])
        with pytest.raises(NoAnswer, match=f"{name}: nothing after"):
            await asyncio.wait_for(tail.sync(), DEADLINE)
    finally:
        await tail.stop()


async def test_a_read_that_gets_on_may_take_as_long_as_it_likes(
    kafka: KafkaCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(kafka.address, transactions=True)
    name = await topic(broker)
    monkeypatch.setattr(patience, "STILL_SECONDS", 0.05)
    slow = Patience(connection(broker), name)
    for place in range(5):
        await slow.at(place)
        await asyncio.sleep(0.03)
        await slow.at(place)
        await asyncio.sleep(0.03)
    with pytest.raises(NoAnswer):
        for _ in range(5):
            await slow.at(4)
            await asyncio.sleep(0.03)
