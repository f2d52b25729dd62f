"""What was acknowledged stands on two brokers: with one in-sync copy left a write waits, and is not accepted.

With `min.insync.replicas=1`, or with acks of the leader alone, the last in-sync copy acknowledges; then
its disk is lost, and with it what everybody was told is written.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from riverkeeper.topics.catalog import Catalog, Replication, TopicSpec, family
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.log import Out
from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.counterexamples.without import Remedy
from tests.topics.logs import DEADLINE, until, values, writing

REMEDIES = [
    Remedy(
        "topics/catalog.py",
        '"min.insync.replicas": str(self._replication.min_insync),',
        '"min.insync.replicas": "1",',
    ),
    Remedy("topics/catalog.py", "    min_insync: int = 2\n", "    min_insync: int = 1\n"),
    Remedy(
        "topics/log.py",
        '            acks="all",\n            enable_idempotence=True,\n            max_batch_size',
        "            acks=1,\n            max_batch_size",
        what='acks="all"',
    ),
]

REFUSED_SECONDS = 2.0  # a write that is accepted takes some ms
TWO_COPIES = Replication(factor=2)  # so that one broker of three can go, and with it one copy of two


@asynccontextmanager
async def asking(cluster: KafkaCluster) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.address)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def described(admin: AIOKafkaAdminClient, topic: str) -> dict[str, Any]:
    """Partition 0 as the broker that is asked sees it, once that has heard of it."""
    partitions: list[dict[str, Any]] = []

    async def known() -> bool:
        ((found),) = await admin.describe_topics([topic])
        partitions[:] = found["partitions"]
        return bool(partitions)

    await until(known)
    return partitions[0]


async def in_sync(admin: AIOKafkaAdminClient, topic: str, wanted: set[int]) -> bool:
    with suppress(KafkaError):  # the broker that was asked is the one that is down
        return set((await described(admin, topic))["isr"]) == wanted
    return False


async def test_a_write_that_only_one_copy_would_hold_is_not_acknowledged(kafka3: KafkaCluster) -> None:
    broker, name = Broker(kafka3.address, transactions=True), f"t-{uuid.uuid4().hex[:12]}"
    async with Catalog(Connection(kafka3.address), TWO_COPIES) as catalog:
        await catalog.create([TopicSpec(name, 1)])
    async with asking(kafka3) as admin, writing(broker) as writer:
        await writer.write([Out(name, 0, None, b"on two")])
        partition = await described(admin, name)
        leader, (follower,) = partition["leader"], set(partition["replicas"]) - {partition["leader"]}
        await asyncio.to_thread(kafka3.stop, follower)
        try:
            await until(partial(in_sync, admin, name, {leader}))
            write = asyncio.create_task(writer.write([Out(name, 0, None, b"on one")]))
            acknowledged, _ = await asyncio.wait([write], timeout=REFUSED_SECONDS)
            assert not acknowledged, "one copy was enough"
            assert await values(broker, name) == [b"on two"]
        finally:
            await asyncio.to_thread(kafka3.start, follower)
        await asyncio.wait([write], timeout=DEADLINE)  # the same write, as soon as there are two again
        if write.exception() is not None:  # or another: it waits for 10 s, and the broker took longer
            async with writing(broker) as again:
                await again.write([Out(name, 0, None, b"on one")])
        await until(partial(in_sync, admin, name, {leader, follower}))
        assert await values(broker, name) == [b"on two", b"on one"]


async def test_a_whole_family_is_made_of_three_copies_two_of_which_must_acknowledge(
    kafka3: KafkaCluster,
) -> None:
    assert Replication() == Replication(factor=3, min_insync=2)
    specs = family(f"t-{uuid.uuid4().hex[:12]}", partitions=1, model_partitions=1)
    async with Catalog(Connection(kafka3.address)) as catalog, asking(kafka3) as admin:
        await catalog.create(specs)

        async def as_declared() -> bool:  # each broker hears of them in its own time
            return await catalog.differences(specs) == []

        await until(as_declared)
        for spec in specs:
            assert len((await described(admin, spec.name))["replicas"]) == 3, spec.name
