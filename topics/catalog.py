"""The topics of a pipeline: declared here, created or compared, never changed silently."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAlreadyExistsError, for_code

from .connection import Connection
from .embedded import EmbeddedBroker, is_embedded
from .log import MAX_DEAD_BYTES
from .rights import NotAllowed, Right, operations

EVENT_BYTES = 11_000_000  # an event this large still becomes a dead letter with its own bytes
FOREVER = timedelta(milliseconds=-1)
LONG = timedelta(days=365)  # facts, outcomes, examples and dead letters: what a model is rebuilt from
SHORT = timedelta(days=7)
DAY = timedelta(days=1)
VISIBLE_SECONDS = 30.0  # Kafka's brokers learn of a topic some ms after its controller has confirmed it
LOOK_SECONDS = 0.05
ROOM_MS = 600_000  # a takeover's read of a store may take this long without losing a tombstone


class TopicMissing(Exception):
    """A topic that an agent needs does not exist."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} does not exist; create it with `riverkeeper topics MODULE:PIPELINE`")
        self.topic = topic


@dataclass(frozen=True)
class TopicSpec:
    """A topic as declared. `config` holds Kafka's own names and values."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Replication:
    """Copies of each partition, and how many must acknowledge a write."""

    factor: int = 3
    min_insync: int = 2


@dataclass(frozen=True)
class Difference:
    topic: str
    what: str
    declared: str
    found: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.what} is {self.found}, declared {self.declared}"


def family(pipeline: str, *, partitions: int, model_partitions: int) -> list[TopicSpec]:
    """Every topic of a pipeline; see docs/design.md, "Topics"."""
    counts = {"models": model_partitions, "verdicts": 1, "vitals": 1, "incidents": 1, "supervisor.store": 1}
    configs = {
        # Uncompressed, so that the limit holds for what is read, and agents need no producer's codec.
        "events": _delete(SHORT)
        | {"max.message.bytes": str(EVENT_BYTES), "compression.type": "uncompressed"},
        "facts": _delete(LONG),
        "outcomes": _delete(LONG),
        "predictions": _delete(SHORT),
        "examples": _delete(LONG),
        "models": _compact(),
        "shadow": _delete(DAY),
        "vitals": _delete(DAY),
        "verdicts": _delete(FOREVER),
        "incidents": _delete(LONG),
        "dead": _delete(LONG) | {"max.message.bytes": str(MAX_DEAD_BYTES)},
        "ingest.store": _compact(),
        "score.store": _compact(),
        "join.store": _compact(),
        "supervisor.store": _compact(),
    }
    return [TopicSpec(f"{pipeline}.{s}", counts.get(s, partitions), c) for s, c in configs.items()]


def _delete(retention: timedelta) -> dict[str, str]:
    ms = -1 if retention is FOREVER else int(retention / timedelta(milliseconds=1))
    return {"cleanup.policy": "delete", "retention.ms": str(ms)}


def _compact() -> dict[str, str]:
    # A takeover reads all that is not compacted yet, and what is in the active segment never is.
    return {
        "segment.bytes": str(64 * 1024 * 1024),
        "segment.ms": "600000",
        "min.cleanable.dirty.ratio": "0.1",
        "cleanup.policy": "compact",
        "delete.retention.ms": str(ROOM_MS * 144),
    }


class Catalog:
    """Creates and compares topics on one cluster."""

    def __init__(self, connection: Connection, replication: Replication = Replication()) -> None:
        self._admin = connection.admin()
        self._replication = replication

    async def __aenter__(self) -> Catalog:
        await self._admin.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._admin.close()

    async def embedded(self) -> bool:
        """Whether this is the embedded broker: no transactions, nothing outlives its process."""
        return is_embedded((await self._admin.describe_cluster())["cluster_id"])

    async def missing(self, specs: Iterable[TopicSpec]) -> list[TopicSpec]:
        existing = set(await self._admin.list_topics())
        return [spec for spec in specs if spec.name not in existing]

    async def check_rights(self, needed: Mapping[str, Iterable[str]]) -> None:
        """`needed`: operations by topic. Raises TopicMissing for the first that does not exist, NotAllowed
        for all that is missing."""
        if await self.embedded():  # which allows everything, and would create what it is asked for
            existing = set(await self._admin.list_topics())
            allowed = {topic: frozenset(needed[topic]) if topic in existing else None for topic in needed}
        else:
            allowed = dict(await operations(self._admin, needed))
        missing = [
            Right(operation, "topic", topic)
            for topic, may in allowed.items()
            if may is not None
            for operation in needed[topic]
            if operation not in may
        ]
        if missing:
            raise NotAllowed(missing)
        for topic in needed:
            if allowed.get(topic) is None:
                raise TopicMissing(topic)

    async def check_group(self, group: str) -> None:
        """Raises NotAllowed if we may not be in the group. What else goes wrong shows where it is joined."""
        with suppress(KafkaError):
            try:
                await self._admin.find_coordinator(group)
            except GroupAuthorizationFailedError:
                raise NotAllowed([Right("Read", "group", group)]) from None

    async def create(self, specs: Sequence[TopicSpec]) -> list[TopicSpec]:
        """Creates those that are missing, and returns them once they can be seen.

        Raises KafkaError, or TimeoutError.
        """
        missing = await self.missing(specs)
        response = await self._admin.create_topics([self._new(spec) for spec in missing])
        for topic, code, message in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"{topic}: {message}")
        async with asyncio.timeout(VISIBLE_SECONDS):
            while await self.missing(missing):  # noqa: ASYNC110  the brokers bring it about
                await asyncio.sleep(LOOK_SECONDS)
        return missing

    async def differences(self, specs: Sequence[TopicSpec]) -> list[Difference]:
        """What differs, on the cluster, from what is declared; missing topics included."""
        missing = {spec.name for spec in await self.missing(specs)}
        found = [Difference(name, "topic", "present", "missing") for name in sorted(missing)]
        present = [spec for spec in specs if spec.name not in missing]
        found += await self._partition_differences(present)
        return found + await self._config_differences(present)

    async def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        described = await self._admin.describe_topics(list(topics))
        return {d["topic"]: len(d["partitions"]) for d in described}

    async def partition_count(self, topic: str) -> int:
        """Raises TopicMissing, NotAllowed."""
        if topic not in await self._admin.list_topics():
            await self.check_rights({topic: ["Describe"]})
        return (await self.partition_counts([topic]))[topic]

    async def _partition_differences(self, specs: Sequence[TopicSpec]) -> list[Difference]:
        counts = await self.partition_counts([spec.name for spec in specs]) if specs else {}
        return [
            Difference(s.name, "partitions", str(s.partitions), str(counts[s.name]))
            for s in specs
            if counts[s.name] != s.partitions
        ]

    async def _config_differences(self, specs: Sequence[TopicSpec]) -> list[Difference]:
        if not specs or await self.embedded():  # the embedded broker keeps no configuration
            return []
        resources = [ConfigResource(ConfigResourceType.TOPIC, spec.name) for spec in specs]
        found: dict[str, dict[str, str]] = {}
        for response in await self._admin.describe_configs(resources):
            for _, _, _, name, entries in response.resources:
                found[name] = {entry[0]: entry[1] for entry in entries}
        return [
            Difference(spec.name, option, declared, found[spec.name].get(option, "unset"))
            for spec in specs
            for option, declared in self._config(spec).items()
            if found[spec.name].get(option) != declared
        ]

    def _config(self, spec: TopicSpec) -> dict[str, str]:
        durable = {
            "min.insync.replicas": str(self._replication.min_insync),
            "unclean.leader.election.enable": "false",
            # A producer's clock must not be able to expire what others wrote.
            "message.timestamp.type": "LogAppendTime",
        }
        return {**durable, **spec.config}

    def _new(self, spec: TopicSpec) -> NewTopic:
        return NewTopic(
            spec.name,
            spec.partitions,
            self._replication.factor,
            topic_configs=self._config(spec),
        )


def create_embedded(broker: EmbeddedBroker, specs: Iterable[TopicSpec]) -> None:
    """The embedded broker takes no CreateTopics request: its owner creates them."""
    for spec in specs:
        broker.create_topic(spec.name, spec.partitions)
