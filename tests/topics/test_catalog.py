"""Topics are created as declared, compared by name of the option, and never changed silently."""

import re
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from riverkeeper.topics.catalog import (
    Catalog,
    Difference,
    TopicMissing,
    TopicSpec,
    create_embedded,
    family,
)
from riverkeeper.topics.connection import Connection
from riverkeeper.topics.embedded import EmbeddedBroker
from riverkeeper.topics.log import MAX_DEAD_BYTES
from riverkeeper.topics.tail import Tail
from tests.brokers.kafka import KafkaCluster
from tests.topics.logs import ONE_NODE

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
HOUR = {"cleanup.policy": "delete", "retention.ms": "3600000"}


@pytest.fixture
def name() -> str:
    return f"c-{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def cataloguing(address: str) -> AsyncIterator[Catalog]:
    async with Catalog(Connection(address), ONE_NODE) as catalog:
        yield catalog


async def configuration(address: str, topic: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        ((_, _, _, _, entries),) = response.resources
        return {entry[0]: entry[1] for entry in entries}
    finally:
        await admin.close()


async def test_a_whole_family_is_created_as_declared(kafka: KafkaCluster, name: str) -> None:
    specs = family(name, partitions=3, model_partitions=2)
    async with cataloguing(kafka.address) as catalog:
        assert not await catalog.embedded()
        assert await catalog.create(specs) == specs
        assert await catalog.differences(specs) == []
        assert await catalog.partition_counts([s.name for s in specs]) == {
            s.name: s.partitions for s in specs
        }
    dead = await configuration(kafka.address, f"{name}.dead")
    assert dead["max.message.bytes"] == str(MAX_DEAD_BYTES)
    assert dead["message.timestamp.type"] == "LogAppendTime"
    assert dead["unclean.leader.election.enable"] == "false"


async def test_creating_again_creates_only_what_is_missing(kafka: KafkaCluster, name: str) -> None:
    first, second = TopicSpec(f"{name}.a", 1, HOUR), TopicSpec(f"{name}.b", 1, HOUR)
    async with cataloguing(kafka.address) as catalog:
        await catalog.create([first])
        assert await catalog.missing([first, second]) == [second]
        assert await catalog.create([first, second]) == [second]
        assert await catalog.create([first, second]) == []


async def test_differences_are_named_and_nothing_is_changed(kafka: KafkaCluster, name: str) -> None:
    as_it_is = [TopicSpec(f"{name}.a", 2, HOUR), TopicSpec(f"{name}.b", 2, HOUR)]
    compacted = {"cleanup.policy": "compact", "retention.ms": "7200000"}
    wanted = [
        TopicSpec(f"{name}.a", 3, compacted),
        TopicSpec(f"{name}.b", 2, HOUR),
        TopicSpec(f"{name}.c", 1),
    ]
    async with cataloguing(kafka.address) as catalog:
        await catalog.create(as_it_is)
        await catalog.create(wanted[:2])
        found = await catalog.differences(wanted)
        assert sorted(found, key=str) == [
            Difference(f"{name}.a", "cleanup.policy", "compact", "delete"),
            Difference(f"{name}.a", "partitions", "3", "2"),
            Difference(f"{name}.a", "retention.ms", "7200000", "3600000"),
            Difference(f"{name}.c", "topic", "present", "missing"),
        ]
        assert str(found[1]) == f"{name}.a: partitions is 2, declared 3"
        assert await catalog.differences(as_it_is) == []


async def test_what_a_default_gives_is_a_difference_too(kafka: KafkaCluster, name: str) -> None:
    """A topic made by hand takes the producer's clock, by which its records expire."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()
    async with cataloguing(kafka.address) as catalog:
        found = await catalog.differences([TopicSpec(name, 1)])
    assert [(d.what, d.declared, d.found) for d in found] == [
        ("message.timestamp.type", "LogAppendTime", "CreateTime")
    ]


async def test_a_missing_topic_says_how_to_make_it(kafka: KafkaCluster, name: str) -> None:
    async with cataloguing(kafka.address) as catalog:
        with pytest.raises(TopicMissing, match=rf"{name} does not exist; .*riverkeeper topics"):
            await catalog.partition_count(name)
        assert await catalog.missing([TopicSpec(name, 1)])  # asking has not created it
    with pytest.raises(TopicMissing):
        await Tail(Connection(kafka.address), name, lambda record: None).start()


async def test_the_embedded_broker_has_partitions_and_no_options(embedded: EmbeddedBroker, name: str) -> None:
    specs = family(name, partitions=2, model_partitions=1)
    create_embedded(embedded, specs)
    async with Catalog(Connection(embedded.address)) as catalog:
        assert await catalog.embedded()
        assert await catalog.differences(specs) == []
        other = [TopicSpec(f"{name}.facts", 5), TopicSpec(f"{name}.nothing", 1)]
        assert sorted(map(str, await catalog.differences(other))) == [
            f"{name}.facts: partitions is 2, declared 5",
            f"{name}.nothing: topic is missing, declared present",
        ]


def test_the_family_is_the_table_in_the_design() -> None:
    table = DESIGN.read_text().partition("## 3. Topics")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \|[^|]*\|[^|]*\| ([a-z]+)", table, re.MULTILINE)
    declared = {s.name.removeprefix("p."): s for s in family("p", partitions=4, model_partitions=2)}
    stores = {suffix for suffix in declared if suffix.endswith(".store")}
    assert {suffix for suffix, _ in rows if "<" not in suffix} == declared.keys() - stores
    assert stores == {f"{agent}.store" for agent in ("ingest", "score", "join", "supervisor")}
    cleanup = dict(rows)
    for suffix, spec in declared.items():
        expected = cleanup["<agent>.store" if suffix in stores else suffix]
        assert spec.config["cleanup.policy"] == expected, suffix


def test_topics_that_meet_have_equal_counts_and_verdicts_one() -> None:
    counts = {s.name.removeprefix("p."): s.partitions for s in family("p", partitions=4, model_partitions=2)}
    assert counts["predictions"] == counts["outcomes"] == counts["join.store"] == 4
    assert counts["events"] == counts["ingest.store"] == counts["facts"] == counts["score.store"] == 4
    assert counts["verdicts"] == counts["vitals"] == 1
    assert counts["models"] == 2
    keep = {
        s.name.removeprefix("p."): s.config.get("retention.ms")
        for s in family("p", partitions=1, model_partitions=1)
    }
    assert keep["verdicts"] == "-1"
