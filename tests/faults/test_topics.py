"""A topic that is missing, deleted, made anew, widened or cut by retention is told by name, never passed over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions, NewTopic

from riverkeeper.process import topics_of
from riverkeeper.skip import skip
from riverkeeper.topics.catalog import Catalog, Replication
from riverkeeper.topics.messages import Incident
from tests.brokers.kafka import KafkaCluster
from tests.faults.trial import Trial
from tests.system.harness import WAIT_S, Replica

ENDS_S = 120.0  # for a process to notice and to end


@pytest.fixture
def admin(kafka: KafkaCluster) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})


def delete(admin: AdminClient, topic: str) -> None:
    admin.delete_topics([topic])[topic].result(WAIT_S)


def create(admin: AdminClient, topic: str, partitions: int) -> None:
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(WAIT_S)


def widen(admin: AdminClient, topic: str, partitions: int) -> None:
    admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(WAIT_S)


def expire(admin: AdminClient, topic: str, partition: int) -> int:
    """Deletes all that a partition holds, as retention would; returns where it begins then."""
    place = TopicPartition(topic, partition, -1)
    (future,) = admin.delete_records([place]).values()
    return int(future.result(WAIT_S).low_watermark)


async def ended(replica: Replica) -> str:
    """What a process says as it ends by itself, with a status that is not 0."""
    replica.expected = True
    code = await asyncio.to_thread(replica.process.wait, ENDS_S)
    assert code == 1, replica.tail()
    last = replica.tail().splitlines()[-1]
    assert last.startswith("Error: "), replica.tail()
    return last


def troubles(trial: Trial) -> set[str]:
    """By what agents say of partitions that they do not work on."""
    return {vitals.trouble for vitals in trial.outside.vitals() if vitals.trouble}


def alarmed(trial: Trial, place: str) -> Callable[[], bool]:
    def look() -> bool:
        told = [Incident.model_validate_json(r.value or b"") for r in trial.outside["incidents"]]
        return any(i.policy == place and not i.resolved for i in told)

    return look


async def test_missing_at_the_start(trial: Trial, admin: AdminClient) -> None:
    """It is named, with the command that makes it; once that was done all goes well."""
    suffix = trial.rng.choice(["facts", "score.store", "vitals"])
    topic = trial.world.pipeline.topic(suffix)
    await asyncio.to_thread(delete, admin, topic)
    said = await ended(trial.spawn())
    assert f"topic {topic} does not exist" in said and "riverkeeper topics" in said
    async with Catalog(trial.world.connection, Replication(1, 1)) as catalog:
        await catalog.create([spec for spec in topics_of(trial.world.pipeline) if spec.name == topic])
    trial.mark()
    trial.spawn()
    trial.feed()
    await trial.recovered()
    await trial.quiet()


@pytest.mark.parametrize("suffix", ["events", "predictions"])
async def test_deleted_while_running(trial: Trial, admin: AdminClient, suffix: str) -> None:
    """What is gone nobody can bring back; but nobody goes on as if nothing were."""
    replica = trial.spawn()
    await trial.flowing()
    await trial.quiet(stop=False)
    topic = trial.world.pipeline.topic(suffix)
    await asyncio.to_thread(delete, admin, topic)
    assert topic in await ended(replica)


async def test_made_anew(trial: Trial, admin: AdminClient) -> None:
    """Its offsets come again and mean other records: every partition of it stops, and says so."""
    replica = trial.spawn()
    await trial.flowing()
    await trial.quiet(stop=False)
    await replica.stop()
    topic = trial.world.pipeline.topic("facts")
    await asyncio.to_thread(delete, admin, topic)
    await asyncio.to_thread(create, admin, topic, trial.world.pipeline.partitions)
    trial.spawn()
    for p in range(trial.world.pipeline.partitions):
        await trial.until(alarmed(trial, f"score/{p}"), f"an incident tells of score/{p}")
    assert any(topic in said for said in troubles(trial))


async def test_partitions_added(trial: Trial, admin: AdminClient) -> None:
    replica = trial.spawn()
    await trial.flowing()
    await trial.quiet(stop=False)
    topic = trial.world.pipeline.topic("facts")
    await asyncio.to_thread(widen, admin, topic, trial.world.pipeline.partitions + 1)
    said = await ended(replica)
    assert topic in said and "partition" in said


@pytest.mark.parametrize(("agent", "suffix"), [("ingest", "events"), ("score", "facts")])
async def test_retention_passes(trial: Trial, admin: AdminClient, agent: str, suffix: str) -> None:
    """Records that an agent had not read are gone: it stops at that partition, works on at the others, and
    goes on there once an operator has said that it shall."""
    names = ("ingest", "score", "join", "learn", "supervisor")
    trial.spawn(*(name for name in names if name != agent))
    victim = trial.spawn(agent)
    await trial.flowing()
    await trial.moment()
    victim.kill()
    topic, partition = (
        trial.world.pipeline.topic(suffix),
        trial.rng.randrange(trial.world.pipeline.partitions),
    )
    stood = sum(r.partition == partition for r in trial.outside[suffix])
    await trial.until(
        lambda: sum(r.partition == partition for r in trial.outside[suffix]) > stood + 20,
        "records come that nobody reads",
    )
    await asyncio.to_thread(expire, admin, topic, partition)
    victim = trial.spawn(agent)
    where = f"{agent}/{partition}"
    await trial.until(alarmed(trial, where), "an incident tells of the gap")
    assert any(said.startswith(f"{where}: {topic}/{partition} at ") for said in troubles(trial))
    await victim.stop()
    (gap,) = await skip(
        trial.world.connection, trial.world.pipeline, where, "the outage was too long", by="a test"
    )
    assert gap.place == f"{topic}/{partition}" and gap.end > gap.start
    trial.mark()
    trial.spawn(agent)
    await trial.recovered()
    await trial.quiet(complete=False)  # what is gone is never worked off
