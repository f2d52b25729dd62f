"""Of three brokers any one may go, and two may go and come back, without a record lost or counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest
from confluent_kafka import ElectionType, KafkaException
from confluent_kafka.admin import AdminClient

from tests.brokers.broker import Broker
from tests.brokers.kafka import KafkaCluster
from tests.faults.trial import Trial
from tests.system.harness import WAIT_S

NODES = 3
AWAY_S = 8.0  # two sessions of a broker, and more than one of an agent


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    with KafkaCluster(nodes=NODES) as it:
        yield it


@pytest.fixture
def broker(cluster: KafkaCluster) -> Iterator[Broker]:
    yield Broker(cluster.address, transactions=True, copies=NODES, min_insync=2)
    for node in range(1, NODES + 1):  # a trial that failed may have left them as they were then
        if not cluster.running(node):
            cluster.start(node)
        cluster.resume(node)


def admin(cluster: KafkaCluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": cluster.address, "log_level": 0})


def leaders(cluster: KafkaCluster, topic: str) -> dict[int, int]:
    """The leader of each partition; -1 for none."""
    found = admin(cluster).list_topics(topic, timeout=WAIT_S).topics[topic]
    return {p: it.leader for p, it in found.partitions.items()}


def in_sync(cluster: KafkaCluster, topic: str) -> int:
    """The least number of replicas in sync that a partition has."""
    found = admin(cluster).list_topics(topic, timeout=WAIT_S).topics[topic]
    return min(len(it.isrs) for it in found.partitions.values())


def lead_as_preferred(cluster: KafkaCluster) -> None:
    """Every partition goes back to the first of its replicas."""
    client = admin(cluster)  # its requests end with it
    with suppress(KafkaException):  # some had it already
        client.elect_leaders(ElectionType.PREFERRED).result(WAIT_S)


async def settled(trial: Trial, cluster: KafkaCluster) -> None:
    """Waits until every replica is in sync again: the next fault begins with a whole cluster."""
    async with asyncio.timeout(WAIT_S):
        for suffix in ("events", "facts", "predictions", "examples", "models"):
            topic = trial.world.pipeline.topic(suffix)
            while await asyncio.to_thread(in_sync, cluster, topic) < NODES:  # noqa: ASYNC110  Kafka tells nobody
                await asyncio.sleep(0.2)


async def test_leader_killed(trial: Trial, cluster: KafkaCluster) -> None:
    """The broker that leads a partition of facts is gone, and back later; the others serve meanwhile."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    facts = trial.world.pipeline.topic("facts")
    led = await asyncio.to_thread(leaders, cluster, facts)
    node = led[trial.rng.randrange(len(led))]
    cluster.kill(node)
    trial.mark()
    await trial.recovered()
    assert node not in (await asyncio.to_thread(leaders, cluster, facts)).values()
    await asyncio.to_thread(cluster.start, node)
    await settled(trial, cluster)
    await trial.quiet()


async def test_leaders_moved(trial: Trial, cluster: KafkaCluster) -> None:
    """By an orderly shutdown, and back by an election while every broker lives."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    facts = trial.world.pipeline.topic("facts")
    led = await asyncio.to_thread(leaders, cluster, facts)
    node = led[trial.rng.randrange(len(led))]
    await asyncio.to_thread(cluster.stop, node)
    await asyncio.to_thread(cluster.start, node)
    await settled(trial, cluster)
    assert node not in (await asyncio.to_thread(leaders, cluster, facts)).values()
    await trial.moment()
    trial.mark()
    async with asyncio.timeout(WAIT_S):
        while await asyncio.to_thread(leaders, cluster, facts) != led:
            await asyncio.to_thread(lead_as_preferred, cluster)
            await asyncio.sleep(0.5)  # the metadata follow the election
    await trial.recovered()
    await trial.quiet()


async def test_broker_of_three_stopped(trial: Trial, cluster: KafkaCluster) -> None:
    """SIGSTOP of one: the others elect, and what it comes back to is not its own any more."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    node = trial.rng.randint(1, NODES)
    cluster.pause(node)
    trial.mark()
    await trial.recovered()
    await asyncio.sleep(AWAY_S)
    cluster.resume(node)
    await settled(trial, cluster)
    await trial.quiet()


async def test_two_of_three(trial: Trial, cluster: KafkaCluster) -> None:
    """Too few in sync to acknowledge, and no quorum: everything waits, and nothing is taken for written."""
    trial.spawn()
    await trial.flowing()
    await trial.moment()
    away = trial.rng.sample(range(1, NODES + 1), 2)
    for node in away:
        cluster.kill(node)
    await asyncio.sleep(1.0)
    said = len(trial.outside["predictions"])
    await asyncio.sleep(AWAY_S)
    assert len(trial.outside["predictions"]) == said, "one of three acknowledged"
    await asyncio.gather(*(asyncio.to_thread(cluster.start, node) for node in away))
    trial.mark()
    await trial.recovered()
    await settled(trial, cluster)
    await trial.quiet()
