"""How a pipeline stands, read from its topics by anyone who may read them; nothing is written."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from pydantic import ValidationError

from .models.pipeline import Pipeline
from .models.quality import metric_name
from .models.routing import Hold, Routing
from .process import check_topics
from .supervisor.incidents import folded
from .topics.catalog import Catalog
from .topics.connection import Connection
from .topics.log import Record, consumer
from .topics.messages import WAITED, Incident, Manifest, State, Verdict
from .topics.store import Inspector
from .topics.vitals import unpack

SHOWING = {"ingest": ("events",), "score": ("facts",), "join": ("predictions", "outcomes")}
FEW = 50  # records: so little may be transaction markers alone, which are no records; then it is read to know
FEW_MS = 300  # for that
RECENT_MS = 60_000  # of vitals, that say how agents keep up
LAST_VITALS = 5_000  # records; a minute of some ten processes with some ten models
COORDINATOR_LOOKS, COORDINATOR_SECONDS = 20, 0.25  # 5 s in all, as other commands wait


class AgentStatus(msgspec.Struct, frozen=True):
    """`lag` is in records, `replicas` in members of its group; None: nobody has said."""

    agent: str
    lag: int | None
    replicas: int | None


class ModelStatus(msgspec.Struct, frozen=True):
    """`since` is when the verdict in force was given, None before the first. Errors are those of the newest
    version's examples, before it learned them."""

    model: str
    state: str
    since: datetime | None
    version: int
    learned: int
    error: float | None
    baseline: float | None
    barred: list[str]  # slices whose facts others answer


class IncidentStatus(msgspec.Struct, frozen=True):
    id: str
    model: str
    policy: str
    state: str
    since: datetime | None
    reason: str


class LoadStatus(msgspec.Struct, frozen=True):
    """What agents did not come to, as the vitals of the last `RECENT_MS` say; all 0 if they keep up.

    `late` and `too_slow` are facts that the fallback answered for that reason; `shadows_shed` answers of models
    without traffic, and `examples_shed` examples that were left out, as the pipeline allows.
    """

    waited_ms: int  # the longest that a fact had to wait
    facts: int
    late: int
    too_slow: int
    shadows_shed: int
    examples_shed: int


class HoldStatus(msgspec.Struct, frozen=True):
    """That an operator holds all automatic verdicts."""

    by: str
    reason: str
    since: datetime | None


class Status(msgspec.Struct, frozen=True):
    pipeline: str
    metric: str
    agents: list[AgentStatus]
    dead: int  # dead letters that the log still holds
    load: LoadStatus
    models: list[ModelStatus]
    incidents: list[IncidentStatus]  # open ones
    hold: HoldStatus | None = None


async def read_status(connection: Connection, pipeline: Pipeline) -> Status:
    """Raises TopicMissing, PartitionsDiffer, NotAllowed, KafkaError."""
    async with Catalog(connection) as catalog:
        await check_topics(catalog, pipeline, ["watcher"])
    async with Inspector(connection) as inspector:
        verdicts = await inspector.read_all(TopicPartition(pipeline.topic("verdicts"), 0))
        incidents = await inspector.read_all(TopicPartition(pipeline.topic("incidents"), 0))
        versions = [
            record
            for p in range(pipeline.model_partitions)
            for record in await inspector.read_all(TopicPartition(pipeline.topic("models"), p))
        ]
        vitals = await inspector.read_all(TopicPartition(pipeline.topic("vitals"), 0), LAST_VITALS)
    newest = newest_manifests(versions)
    routing = routing_of(pipeline, verdicts)
    models = models_status(routing, newest)
    learning = [newest[m.model] for m in models if m.model in newest and m.state != State.DESTROYED]
    agents, dead = await _agents(connection, pipeline, learning)
    return Status(
        pipeline=pipeline.name,
        metric=metric_name(pipeline.task),
        agents=agents,
        dead=dead,
        load=load_status(vitals),
        models=models,
        incidents=open_incidents(incidents),
        hold=None if routing.hold is None else _hold(routing.hold),
    )


def load_status(records: Sequence[Record]) -> LoadStatus:
    """By the append times of the records: of the last minute before the newest of them."""
    since = max((record.timestamp for record in records), default=0) - RECENT_MS
    waited, counts = 0, Counter[str]()
    for record in records:
        if record.timestamp <= since:
            continue
        try:
            told = unpack(record.value or b"")
        except ValidationError:
            continue
        for vitals in (v for v in told if v.agent in ("score", "learn")):
            waited = max(waited, vitals.counts.get(WAITED, 0))
            counts.update(vitals.counts)
    found = {name: counts[name] for name in LoadStatus.__struct_fields__ if name != WAITED}
    return LoadStatus(waited_ms=waited, **found)


def newest_manifests(records: Sequence[Record]) -> dict[str, Manifest]:
    """By model. Chunks have longer keys, and are passed over."""
    newest: dict[str, Manifest] = {}
    for record in records:
        if record.value is None or (record.key or b"").count(b"/") != 1:
            continue
        try:
            manifest = Manifest.model_validate_json(record.value)
        except ValidationError:
            continue
        known = newest.get(manifest.model)
        if known is None or manifest.version >= known.version:
            newest[manifest.model] = manifest
    return newest


def routing_of(pipeline: Pipeline, verdicts: Sequence[Record]) -> Routing:
    routing = Routing.declared(pipeline.models, pipeline.serving)
    for record in verdicts:
        with suppress(ValidationError):
            routing = routing.obey(record.offset, Verdict.model_validate_json(record.value or b""))
    return routing


def models_status(routing: Routing, newest: Mapping[str, Manifest]) -> list[ModelStatus]:
    found = []
    for name, route in routing.routes.items():
        manifest = newest.get(name)
        found.append(
            ModelStatus(
                model=name,
                state=route.state.value,
                since=_time(route.since_ms if route.offset >= 0 else None),
                version=manifest.version if manifest else 0,
                learned=manifest.learned if manifest else 0,
                error=manifest.error if manifest else None,
                baseline=manifest.baseline_error if manifest else None,
                barred=sorted(route.barred),
            )
        )
    return found


def _hold(hold: Hold) -> HoldStatus:
    return HoldStatus(hold.by, hold.reason, _time(hold.at_ms))


def open_incidents(records: Sequence[Record]) -> list[IncidentStatus]:
    newest: dict[str, Incident] = {}
    for record in records:
        try:
            incident = Incident.model_validate_json(record.value or b"")
        except ValidationError:
            continue
        newest[incident.id] = folded(newest.get(incident.id), incident)
    return [_open(incident) for incident in newest.values() if not incident.resolved]


def _open(incident: Incident) -> IncidentStatus:
    last = incident.timeline[-1] if incident.timeline else None
    return IncidentStatus(
        id=incident.id,
        model=incident.model,
        policy=incident.policy,
        state=last.state if last else "",
        since=_time(last.at_ms) if last else None,
        reason=last.reason if last else "",
    )


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


# Who is at work, and how far.


async def _agents(
    connection: Connection, pipeline: Pipeline, learning: Sequence[Manifest]
) -> tuple[list[AgentStatus], int]:
    """The agents, and how many dead letters there are."""
    async with AsyncExitStack() as stack:
        admin = connection.admin()
        reader = consumer(connection)
        stack.push_async_callback(admin.close)
        stack.push_async_callback(reader.stop)
        await admin.start()
        await reader.start()
        lags: dict[str, int | None] = {}
        for agent, suffixes in SHOWING.items():
            tps = [TopicPartition(pipeline.topic(s), p) for s in suffixes for p in range(pipeline.partitions)]
            group_id = pipeline.agent_group(agent)
            coordinator = await _coordinator(admin, group_id)
            group = await admin.list_consumer_group_offsets(group_id, coordinator, partitions=tps)
            positions = {tp: at.offset for tp, at in group.items() if at.offset >= 0}
            lags[agent] = await _lag(reader, positions) if positions else None
        learned = _learned(pipeline, learning)
        lags["learn"] = await _lag(reader, learned) if learned else None
        found = [
            AgentStatus(agent, lag, await _replicas(admin, pipeline.agent_group(agent)))
            for agent, lag in lags.items()
        ]
        letters = [TopicPartition(pipeline.topic("dead"), p) for p in range(pipeline.partitions)]
        return found, await _lag(reader, dict.fromkeys(letters, 0))


async def _coordinator(admin: AIOKafkaAdminClient, group: str) -> int:
    """A cluster that never had a group makes the topic for them first."""
    for _ in range(COORDINATOR_LOOKS - 1):
        try:
            return int(await admin.find_coordinator(group))
        except GroupCoordinatorNotAvailableError:
            await asyncio.sleep(COORDINATOR_SECONDS)
    return int(await admin.find_coordinator(group))


async def _replicas(admin: AIOKafkaAdminClient, group: str) -> int | None:
    try:
        described = await admin.describe_consumer_groups([group])
    except KafkaError:  # a broker that cannot tell, as the embedded one
        return None
    return len(described[0].to_object()["groups"][0]["members"])


def _learned(pipeline: Pipeline, newest: Sequence[Manifest]) -> dict[TopicPartition, int]:
    """How far the published versions go: the learner's group is over `models`, not over what it learns."""
    topic = pipeline.topic("examples")
    return {
        TopicPartition(topic, p): min(manifest.offsets.get(p, 0) for manifest in newest)
        for p in range(pipeline.partitions)
        if newest
    }


async def _lag(reader: AIOKafkaConsumer, positions: Mapping[TopicPartition, int]) -> int:
    begins = await reader.beginning_offsets(list(positions))
    ends = await reader.end_offsets(list(positions))
    total = 0
    for tp, position in positions.items():
        start = max(position, begins[tp])
        left = max(0, ends[tp] - start)
        total += await _count(reader, tp, start, ends[tp]) if 0 < left <= FEW else left
    return total


async def _count(reader: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int) -> int:
    """Records in [start, end), without the markers of transactions."""
    reader.assign([tp])
    reader.seek(tp, start)
    records = 0
    while await reader.position(tp) < end:
        got = await reader.getmany(tp, timeout_ms=FEW_MS)
        records += sum(record.offset < end for record in got.get(tp, ()))
        if not got:
            break
    return records


# Shown.


def text(status: Status) -> str:
    """For people; times are in UTC."""
    parts = [
        table(
            ["agent", "replicas", "lag"],
            [[a.agent, *("-" if n is None else str(n) for n in (a.replicas, a.lag))] for a in status.agents],
        ),
        f"dead letters: {status.dead}",
        _load(status.load),
        table(
            ["model", "state", "since", "version", "learned", status.metric, "baseline"],
            [_row(model) for model in status.models],
        ),
    ]
    if status.incidents:
        rows = [[i.model, i.policy, i.state, _when(i.since), i.reason] for i in status.incidents]
        parts.append(table(["open incident", "policy", "state", "since", "reason"], rows))
    else:
        parts.append("no open incident")
    return "\n\n".join([f"pipeline {status.pipeline}{_held(status.hold)}", *parts])


def _held(hold: HoldStatus | None) -> str:
    if hold is None:
        return ""
    return f"\n\nHELD by {hold.by} since {_when(hold.since)}: {hold.reason}\nNo verdict of a supervisor counts until `riverkeeper release`."


def _load(load: LoadStatus) -> str:
    """The last minute in a line: what was shed, if anything."""
    left = {
        "late": load.late,
        "too slow a model": load.too_slow,
        "shadow answers shed": load.shadows_shed,
        "examples shed": load.examples_shed,
    }
    told = [f"{name} {count:,}" for name, count in left.items() if count] or ["nothing shed"]
    return ", ".join(
        [f"last minute: {load.facts:,} facts", f"longest wait {load.waited_ms / 1000:.1f} s", *told]
    )


def _row(model: ModelStatus) -> list[str]:
    version = f"v{model.version}" if model.version else "-"
    errors = ["-" if e is None else f"{e:.4g}" for e in (model.error, model.baseline)]
    state = f"{model.state}, not where {', '.join(model.barred)}" if model.barred else model.state
    return [model.model, state, _when(model.since), version, str(model.learned), *errors]


def _when(at: datetime | None) -> str:
    return "declared" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], figures: Collection[str] = frozenset()) -> str:
    """Columns side by side; those whose heads are in `figures` stand to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    set_ = [str.rjust if name in figures else str.ljust for name in head]
    lines = [
        [place(cell, width) for place, cell, width in zip(set_, row, widths, strict=True)]
        for row in (head, *rows)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
