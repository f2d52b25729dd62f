"""The Kafka that the tests run against is real: transactions isolate, data outlives a kill -9."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import ProducerFenced

from riverkeeper.topics.embedded import is_embedded
from tests.brokers.kafka import KafkaCluster, KafkaError, jars

DEADLINE = 30.0  # s; covers the election after a killed broker's session of 3 s


@asynccontextmanager
async def administering(address: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


@asynccontextmanager
async def producing(address: str, transactional_id: str | None = None) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=address,
        enable_idempotence=True,
        transactional_id=transactional_id,
        metadata_max_age_ms=1_000,
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def create_topic(address: str, topic: str, replicas: int = 1) -> None:
    async with administering(address) as admin:
        await admin.create_topics([NewTopic(topic, 1, replicas)])


async def read(address: str, topic: str, isolation_level: str, count: int) -> list[bytes]:
    """The first `count` values of partition 0, by a consumer at that isolation level."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address, isolation_level=isolation_level, auto_offset_reset="none"
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        return [(await asyncio.wait_for(consumer.getone(), DEADLINE)).value for _ in range(count)]
    finally:
        await consumer.stop()


async def test_it_starts_and_is_not_taken_for_the_embedded_broker(kafka: KafkaCluster) -> None:
    async with administering(kafka.address) as admin:
        cluster = await admin.describe_cluster()
    assert [broker["node_id"] for broker in cluster["brokers"]] == [1]
    assert not is_embedded(cluster["cluster_id"])


async def test_an_unknown_topic_stays_unknown(kafka: KafkaCluster) -> None:
    async with administering(kafka.address) as admin:
        await admin.describe_topics(["never-created"])
        assert "never-created" not in await admin.list_topics()


async def test_read_committed_sees_no_aborted_record(kafka: KafkaCluster) -> None:
    await create_topic(kafka.address, "isolated")
    async with producing(kafka.address, transactional_id="isolated") as producer:
        await producer.begin_transaction()
        await producer.send_and_wait("isolated", b"aborted", partition=0)
        await producer.abort_transaction()
        async with producer.transaction():
            await producer.send_and_wait("isolated", b"committed", partition=0)
    assert await read(kafka.address, "isolated", "read_committed", 1) == [b"committed"]
    assert await read(kafka.address, "isolated", "read_uncommitted", 2) == [b"aborted", b"committed"]


async def test_a_second_producer_with_the_same_id_fences_the_first(kafka: KafkaCluster) -> None:
    await create_topic(kafka.address, "fenced")
    async with producing(kafka.address, transactional_id="fenced") as first:
        await first.begin_transaction()
        await first.send_and_wait("fenced", b"zombie", partition=0)
        async with producing(kafka.address, transactional_id="fenced") as second, second.transaction():
            await second.send_and_wait("fenced", b"owner", partition=0)
        with pytest.raises(ProducerFenced):
            await first.commit_transaction()
    assert await read(kafka.address, "fenced", "read_committed", 1) == [b"owner"]


async def test_a_killed_node_keeps_its_data() -> None:
    with await asyncio.to_thread(KafkaCluster) as cluster:
        await create_topic(cluster.address, "kept")
        async with producing(cluster.address) as producer:
            await producer.send_and_wait("kept", b"before", partition=0)
        cluster.kill(1)
        await asyncio.to_thread(cluster.start, 1)
        async with producing(cluster.address) as producer:
            await producer.send_and_wait("kept", b"after", partition=0)
        assert await read(cluster.address, "kept", "read_committed", 2) == [b"before", b"after"]


async def test_three_nodes_serve_while_one_is_dead_and_another_was_paused(kafka3: KafkaCluster) -> None:
    await create_topic(kafka3.address, "replicated", replicas=3)
    async with producing(kafka3.address) as producer:
        await asyncio.wait_for(producer.send_and_wait("replicated", b"all up", partition=0), DEADLINE)
        kafka3.kill(1)
        try:
            await asyncio.wait_for(producer.send_and_wait("replicated", b"one dead", partition=0), DEADLINE)
        finally:
            await asyncio.to_thread(kafka3.start, 1)
        kafka3.pause(2)
        kafka3.resume(2)
        await asyncio.wait_for(producer.send_and_wait("replicated", b"again", partition=0), DEADLINE)
    assert await read(kafka3.address, "replicated", "read_committed", 3) == [b"all up", b"one dead", b"again"]


def test_a_stopped_node_starts_again_and_close_removes_its_folder() -> None:
    cluster = KafkaCluster()
    cluster.stop(1)
    with pytest.raises(KafkaError, match="node 1 is not running"):
        cluster.kill(1)
    cluster.start(1)
    folder = cluster._folder
    cluster.close()
    assert not folder.exists()


def test_the_jars_are_fetched_once() -> None:
    first, written = jars(), jars().stat().st_mtime_ns
    assert (jars(), jars().stat().st_mtime_ns) == (first, written)


def test_a_missing_java_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaError, match="apt-get install openjdk-17-jre-headless maven"):
        jars()
