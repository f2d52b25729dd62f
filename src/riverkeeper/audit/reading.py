"""The shell: reads every topic as any program may, feeds the ledger, and names what was found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from ..models.pipeline import Pipeline
from ..topics.catalog import Catalog
from ..topics.connection import Connection
from ..topics.log import Record, stop_consumer
from .ledger import ORDER, Ledger
from .obedience import OBEYED_WITHIN_MS
from .report import MAX_HELD, Notebook, Place, Report, Topic
from .rule import Extent, Horizon
from .scratch import Scratch

BATCH = 5_000  # records between looks at the clock, and at Ctrl-C
FETCH_BYTES = 4_000_000  # of one partition at once; 10 000 records or so
WAIT_MS = 200  # one wait for records
FETCH_WAIT_MS = 10  # at a partition's end the client asks for more, and the next partition waits for that
STUCK_SECONDS = 60.0  # without a record where one must be: a broker is in trouble
OPEN_SECONDS = 15.0  # a transaction on its way when the audit began has ended by then; Kafka's limit is 10 s
LOOK_SECONDS = 0.02  # between looks whether it has
MAX_NAMED = 200  # findings whose ids are looked up: each is one read
HEAD_RECORDS = 20  # the head of a store is the last record of each commit
HEAD = b"head"

Progress = Callable[[str, int, int], None]  # topic, records read and to read (offsets) of it

# Causes' ends first: an effect that comes later than its cause's end is of no concern, and one that
# is missing was not written before its own topic's end was asked for.
ENDS = (
    Topic.EVENTS,
    Topic.FACTS,
    Topic.OUTCOMES,
    Topic.PREDICTIONS,
    Topic.EXAMPLES,
    Topic.DEAD,
    Topic.MODELS,
    Topic.VERDICTS,
)
EFFECTS = ENDS[1:]
STORES = {
    "ingest.store": (Topic.EVENTS,),
    "score.store": (Topic.FACTS,),
    "join.store": (Topic.PREDICTIONS, Topic.OUTCOMES),
}


class CannotAudit(Exception):
    """The topics are not those of the pipeline, or could not be read to their ends."""


async def audit(
    pipeline: Pipeline,
    connection: Connection,
    *,
    since: datetime | None = None,
    progress: Progress | None = None,
    signing_key: bytes | None = None,
    recompute: bool = True,
    obeyed_within_ms: int = OBEYED_WITHIN_MS,
    scratch: Path | None = None,
) -> Report:
    """Accounts for every record of a pipeline, as of now; nothing is written to the broker.

    With the signing key, signatures are checked and predictions are computed again from the versions
    that are kept. Raises TopicMissing, KafkaError, CannotAudit.
    """
    began = time.monotonic()
    await _check(pipeline, connection)
    async with (
        _consumer(connection, "read_committed") as consumer,
        _consumer(connection, "read_uncommitted") as uncommitted,
    ):
        log = _Log(pipeline, consumer, uncommitted)
        horizon = await log.horizon(since)
        with Scratch(scratch) as rows:
            ledger = Ledger(
                pipeline,
                horizon,
                rows,
                key=signing_key,
                recompute=recompute,
                obeyed_within_ms=obeyed_within_ms,
            )
            for topic in ORDER:
                async for partition, records, done, total in log.read(topic, horizon):
                    ledger.read(topic, partition, records)
                    if progress is not None:
                        progress(topic.suffix, done, total)
                    await asyncio.sleep(0)
            horizon.final = await log.ends()
            if progress is not None:
                progress("sums", 0, 0)
            notes = await _settled(ledger, rows)
        findings = list(notes.findings)
        for i, place in enumerate(notes.named_by[:MAX_NAMED]):
            if not findings[i].id and place.offset >= 0:
                findings[i] = msgspec.structs.replace(findings[i], id=await log.name(place))
    return Report(
        pipeline=pipeline.name,
        findings=findings[:MAX_HELD],
        found=dict(notes.found),
        counts=dict(notes.counts),
        repeats=dict(notes.repeats),
        pending=dict(notes.pending),
        unchecked=[*log.notes, *(f"{what}: {n}" for what, n in notes.unchecked.items())],
        records=log.records,
        seconds=time.monotonic() - began,
    )


async def _settled(ledger: Ledger, rows: Scratch) -> Notebook:
    """In a thread, for it takes a third of the time; cancelled, it stops at its next row."""
    settling = asyncio.ensure_future(asyncio.to_thread(ledger.settle))
    try:
        return await asyncio.shield(settling)
    except asyncio.CancelledError:
        rows.interrupt()
        await asyncio.wait([settling])
        settling.exception()
        raise


async def _check(pipeline: Pipeline, connection: Connection) -> None:
    async with Catalog(connection) as catalog:
        for topic in Topic:
            name, declared = pipeline.topic(topic.suffix), _partitions(pipeline, topic)
            found = await catalog.partition_count(name)
            if found != declared:
                raise CannotAudit(
                    f"topic {name} has {found} partitions, {declared} are declared; audit it with the declaration "
                    "that it was written under"
                )


def _partitions(pipeline: Pipeline, topic: Topic) -> int:
    return {Topic.MODELS: pipeline.model_partitions, Topic.VERDICTS: 1}.get(topic, pipeline.partitions)


@asynccontextmanager
async def _consumer(connection: Connection, isolation: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = connection.consumer(
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level=isolation,
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await stop_consumer(consumer)


class _Log:
    """A pipeline's topics."""

    def __init__(self, pipeline: Pipeline, consumer: AIOKafkaConsumer, uncommitted: AIOKafkaConsumer) -> None:
        self._pipeline = pipeline
        self._consumer = consumer
        self._uncommitted = uncommitted
        self.records = 0
        self.notes: list[str] = []

    def _tp(self, topic: Topic, partition: int) -> TopicPartition:
        return TopicPartition(self._pipeline.topic(topic.suffix), partition)

    def _tps(self, topic: Topic) -> list[TopicPartition]:
        return [self._tp(topic, p) for p in range(_partitions(self._pipeline, topic))]

    async def horizon(self, since: datetime | None) -> Horizon:
        positions = await self._positions()
        early = await self._consumer.end_offsets(self._tps(Topic.EXAMPLES))
        extents: dict[tuple[Topic, int], Extent] = {}
        for topic in ENDS:
            tps = self._tps(topic)
            ends = await self._stable_ends(tps) if topic in EFFECTS else await self._consumer.end_offsets(tps)
            begins = await self._consumer.beginning_offsets(tps)
            for tp in tps:
                extents[topic, tp.partition] = Extent(begins[tp], ends[tp], begins[tp] == 0)
        if since is not None:
            await self._start_at(since, extents)
        return Horizon(
            extents, positions, early={(Topic.EXAMPLES, tp.partition): end for tp, end in early.items()}
        )

    async def _stable_ends(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The ends as of now, once every transaction on its way is over: one whose position was read in
        a store may not be marked as committed here yet."""
        asked = await self._uncommitted.end_offsets(tps)
        deadline = time.monotonic() + OPEN_SECONDS
        while True:
            ends: dict[TopicPartition, int] = await self._consumer.end_offsets(tps)
            behind = [tp for tp in tps if ends[tp] < asked[tp]]
            if not behind:
                return ends
            if time.monotonic() > deadline:
                raise CannotAudit(
                    f"{behind[0].topic}/{behind[0].partition}: a transaction has been open for "
                    f"{OPEN_SECONDS:.0f} s, and what comes after it cannot be read; is a broker down?"
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def _start_at(self, since: datetime, extents: Mapping[tuple[Topic, int], Extent]) -> None:
        """Begins at an append time, except with what is few and judges the rest."""
        ms = int(since.timestamp() * 1000)
        for (topic, partition), extent in extents.items():
            if topic in (Topic.MODELS, Topic.VERDICTS):
                continue
            tp = self._tp(topic, partition)
            found = (await self._consumer.offsets_for_times({tp: ms}))[tp]
            begin = extent.end if found is None else min(found.offset, extent.end)
            if begin > extent.begin:
                extent.begin, extent.whole = begin, False
            if not extent.whole:
                extent.since = ms

    async def ends(self) -> dict[tuple[Topic, int], int]:
        found = {}
        for topic in ENDS:
            ends = await self._consumer.end_offsets(self._tps(topic))
            found.update({(topic, tp.partition): end for tp, end in ends.items()})
        return found

    # How far the agents say they are.

    async def _positions(self) -> dict[tuple[Topic, int], int]:
        found: dict[tuple[Topic, int], int] = {}
        for store, topics in STORES.items():
            for partition in range(self._pipeline.partitions):
                head = await self._head(TopicPartition(self._pipeline.topic(store), partition))
                for topic in topics:
                    tp = self._tp(topic, partition)
                    found[topic, partition] = head.get(f"{tp.topic}/{tp.partition}", 0)
        return found

    async def _head(self, tp: TopicPartition) -> dict[str, int]:
        """The positions in the newest head of a store, which stands near its end; none if there is none."""
        end = (await self._consumer.end_offsets([tp]))[tp]
        begin = (await self._consumer.beginning_offsets([tp]))[tp]
        back = HEAD_RECORDS
        while begin < end:
            start = max(begin, end - back)
            heads = [r async for r in self._span(tp, start, end) if r.key == HEAD and r.value]
            if heads:
                return msgspec.json.decode(heads[-1].value or b"", type=_Head).positions
            if start == begin:
                break
            back *= 10
        return {}

    # Reading.

    async def _span(self, tp: TopicPartition, begin: int, end: int) -> AsyncIterator[Record]:
        async for records in self._batches(tp, begin, end):
            for record in records:
                yield record

    async def _batches(self, tp: TopicPartition, begin: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """The committed records in [begin, end)."""
        self._consumer.assign([tp])
        self._consumer.seek(tp, begin)
        heard = time.monotonic()
        while begin < end:
            got = (await self._consumer.getmany(tp, timeout_ms=WAIT_MS, max_records=BATCH)).get(tp, ())
            reached = await self._consumer.position(tp)
            if reached > begin:
                heard = time.monotonic()
            elif time.monotonic() - heard > STUCK_SECONDS:
                raise CannotAudit(
                    f"{tp.topic}/{tp.partition} gave nothing beyond {begin} for {STUCK_SECONDS:.0f} s"
                )
            begin = reached
            yield [record for record in got if record.offset < end] if reached > end else got

    async def read(
        self, topic: Topic, horizon: Horizon
    ) -> AsyncIterator[tuple[int, Sequence[Record], int, int]]:
        """(partition, records, offsets done, offsets in all), a partition after the other."""
        extents = {tp: horizon.extents[topic, tp.partition] for tp in self._tps(topic)}
        total = sum(max(0, extent.end - extent.begin) for extent in extents.values())
        before = 0
        for tp, extent in extents.items():
            if extent.begin >= extent.end:
                continue
            async for records in self._batches(tp, extent.begin, extent.end):
                if not records:
                    continue
                if not extent.whole and not extent.since:
                    extent.since = records[0].timestamp
                self.records += len(records)
                done = before + records[-1].offset + 1 - extent.begin
                yield tp.partition, records, done, total
            before += extent.end - extent.begin

    async def name(self, place: Place) -> str:
        """The id of a record, as far as it has one."""
        tp = self._tp(place.topic, place.partition)
        try:
            async for record in self._span(tp, place.offset, place.offset + 1):
                return name_of(self._pipeline, record)
        except (OffsetOutOfRangeError, CannotAudit):
            pass
        return ""


def name_of(pipeline: Pipeline, record: Record) -> str:
    """What people know a record by: its id, or else its key."""
    for name, value in record.headers:
        if name == "ce_id":
            return (value or b"").decode(errors="replace")
    try:
        decoded = msgspec.json.decode(record.value or b"")
    except msgspec.DecodeError:
        decoded = None
    if isinstance(decoded, dict):
        for name in (pipeline.event.id, "id"):
            if name in decoded:
                return str(decoded[name])
    return (record.key or b"").decode(errors="replace")


class _Head(msgspec.Struct):
    positions: dict[str, int]
