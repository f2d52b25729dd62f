"""Incidents as an operator looks at them: read from the log by whoever may read it; an acknowledgement is written."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec
from aiokafka import TopicPartition
from pydantic import ValidationError

from .models.features import PipelineError, did_you_mean
from .models.pipeline import name_of
from .supervisor.blast import Blast
from .supervisor.incidents import acknowledged, folded
from .supervisor.postmortem import listed, markdown, stretch
from .topics.catalog import Catalog
from .topics.connection import Connection
from .topics.log import Out, Record, Writer
from .topics.messages import UNREADABLE, Incident, Prediction
from .topics.store import Inspector, Progress

HEAD = ["incident", "state", "policy", "model", "since", "reason"]
MOST = 5_000_000  # predictions read for one report: ten minutes; then it says that it is cut


async def read(connection: Connection, pipeline_ref: str) -> dict[str, Incident]:
    """By id, oldest first. Raises TopicMissing, NotAllowed, KafkaError."""
    topic = f"{name_of(pipeline_ref)}.incidents"
    async with Catalog(connection) as catalog:
        await catalog.partition_count(topic)
    async with Inspector(connection) as inspector:
        records = await inspector.read_all(TopicPartition(topic, 0))
    found: dict[str, Incident] = {}
    for record in records:
        incident = _incident(record)
        if incident is not None:
            found[incident.id] = folded(found.get(incident.id), incident)
    return found


def rows(incidents: Mapping[str, Incident], *, resolved: bool) -> list[list[str]]:
    """Under `HEAD`, newest first; those that are over only if asked for."""
    return listed([i for i in incidents.values() if resolved or not i.resolved])


async def show(connection: Connection, pipeline_ref: str, id_: str) -> str:
    """The draft of a post-mortem. Raises PipelineError for an unknown id; see `read` for the rest."""
    incident = _named(await read(connection, pipeline_ref), id_)
    topic, now = f"{name_of(pipeline_ref)}.predictions", _now_ms()
    blast = Blast(incident.model, stretch(incident, now), incident.slice)
    count = 0
    async with Catalog(connection) as catalog:
        partitions, embedded = await catalog.partition_count(topic), await catalog.embedded()
    async with Inspector(connection) as inspector:
        for partition in range(partitions):
            tp = TopicPartition(topic, partition)
            # The embedded broker knows no times.
            begin = None if embedded else await inspector.offset_at(tp, blast.stretch.from_ms)
            firsts = Progress({tp: 0}, frozenset({topic}))
            async for records in inspector.batches(tp, begin):
                if not records or records[0].timestamp > blast.stretch.until_ms or count >= MOST:
                    break
                for record in firsts.admit(tp, records):
                    count += 1
                    _count(blast, record)
    text = markdown(incident, blast, topic, now)
    return text if count < MOST else f"{text}\n_Of the predictions the first {MOST:,} were read._\n"


def _count(blast: Blast, record: Record) -> None:
    try:
        said = msgspec.json.decode(record.value or b"", type=Prediction)
    except UNREADABLE:  # a foreign record is no prediction
        return
    blast.add(record.partition, record.offset, record.timestamp, said)


async def acknowledge(connection: Connection, pipeline_ref: str, id_: str, note: str, *, by: str) -> Incident:
    """Says on the log that somebody has seen it. Raises PipelineError for one that is unknown or over."""
    incident = _named(await read(connection, pipeline_ref), id_)
    if incident.resolved:
        raise PipelineError(f"{id_} is resolved: there is nothing to acknowledge")
    told = acknowledged(incident, by, note, _now_ms())
    writer = Writer(connection)
    await writer.start()
    try:
        await writer.write([Out(f"{name_of(pipeline_ref)}.incidents", 0, told.id.encode(), told.encode())])
    finally:
        await writer.stop()
    return told


def _named(incidents: Mapping[str, Incident], id_: str) -> Incident:
    if id_ not in incidents:
        raise PipelineError(f"there is no incident {id_!r}{did_you_mean(id_, incidents, '')}")
    return incidents[id_]


def _incident(record: Record) -> Incident | None:
    try:
        return Incident.model_validate_json(record.value or b"")
    except ValidationError:
        return None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
