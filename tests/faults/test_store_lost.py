"""An agent whose store was emptied or cut makes its outputs good, or stops and says so: it never doubles."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.admin.records_to_delete import RecordsToDelete

from riverkeeper.process import topics_of
from riverkeeper.topics.catalog import Catalog, Replication
from riverkeeper.topics.messages import Incident
from riverkeeper.topics.store import Inspector
from tests.faults.trial import Trial
from tests.topics.logs import until

AGENTS = ("ingest", "score", "join", "learn")
STORED = ("ingest", "score", "join")  # learn's store is `models`, whose loss is no fault but a decision


async def made_anew(trial: Trial, agent: str) -> None:
    """Deletes the agent's store and creates it again, as declared."""
    topic = trial.world.pipeline.topic(f"{agent}.store")
    spec = next(spec for spec in topics_of(trial.world.pipeline) if spec.name == topic)
    admin = AIOKafkaAdminClient(bootstrap_servers=trial.world.broker.address)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
    async with Catalog(trial.world.connection, Replication(1, 1)) as catalog:

        async def gone() -> bool:
            return bool(await catalog.missing([spec]))

        await until(gone)
        await catalog.create([spec])


async def cut(trial: Trial, agent: str) -> None:
    """Deletes the older half of every partition of the agent's store. Kafka refuses that while it is compacted."""
    topic = trial.world.pipeline.topic(f"{agent}.store")
    tps = [TopicPartition(topic, p) for p in range(trial.world.pipeline.partitions)]
    async with Inspector(trial.world.connection) as inspector:
        ends = {tp: (await inspector.range(tp))[1] for tp in tps}
    admin = AIOKafkaAdminClient(bootstrap_servers=trial.world.broker.address)
    await admin.start()
    try:
        for policy in ("delete", "compact"):
            changed = {"cleanup.policy": policy}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=changed)])
            if policy == "delete":
                await admin.delete_records({tp: RecordsToDelete(end // 2) for tp, end in ends.items()})
    finally:
        await admin.close()


def stopped(trial: Trial, agent: str) -> set[str]:
    """The agent's partitions that are stopped for their store, as its vitals tell."""
    told = [vitals.trouble for vitals in trial.outside.vitals()]
    troubles = [t.partition(": ") for t in told if t.startswith(f"{agent}/")]
    return {where for where, _, why in troubles if f"{agent}.store" in why}


def alarmed(trial: Trial, where: set[str]) -> bool:
    """Whether an incident is open on each of these."""
    known = [Incident.model_validate_json(r.value or b"") for r in trial.outside["incidents"]]
    return where <= {i.policy for i in known if not i.resolved}


def everywhere(trial: Trial, agent: str) -> set[str]:
    return {f"{agent}/{p}" for p in range(trial.world.pipeline.partitions)}


@pytest.mark.parametrize("agent", ["ingest", "score"])
async def test_made_anew_where_outputs_name_their_cause(trial: Trial, agent: str) -> None:
    """Everything is read again from the beginning: readers pass over what they know, state is as it was."""
    trial.spawn(*(name for name in AGENTS if name != agent))
    victim = trial.spawn(agent)
    await trial.flowing()
    await trial.moment()
    victim.kill()
    await made_anew(trial, agent)
    trial.mark()
    trial.spawn(agent)
    await trial.recovered("predictions", "models")
    await trial.quiet()


async def test_made_anew_where_outputs_cannot_be_told_apart(trial: Trial) -> None:
    """An example made twice would be learned twice: join stops, and tells why."""
    trial.spawn("ingest", "score", "learn", "supervisor")
    victim = trial.spawn("join")
    await trial.flowing()
    await trial.moment()
    victim.kill()
    await made_anew(trial, "join")
    trial.spawn("join")
    await trial.until(lambda: stopped(trial, "join") == everywhere(trial, "join"), "every partition stops")
    await trial.until(lambda: alarmed(trial, everywhere(trial, "join")), "an incident tells of each")
    await trial.quiet(complete=False)


@pytest.mark.parametrize("agent", STORED)
async def test_cut(trial: Trial, agent: str) -> None:
    """A store that lacks its older half would give wrong features, repeated ids or lost labels."""
    trial.spawn(*(name for name in AGENTS if name != agent), "supervisor")
    victim = trial.spawn(agent)
    await trial.flowing()
    await trial.moment()
    victim.kill()
    await cut(trial, agent)
    trial.spawn(agent)
    await trial.until(lambda: stopped(trial, agent) == everywhere(trial, agent), "every partition stops")
    await trial.until(lambda: alarmed(trial, everywhere(trial, agent)), "an incident tells of each")
    await trial.quiet(complete=False)
