"""What an agent remembers of one source partition, and how it is taken over.

Partition p of `<agent>.store` holds all that the agent knows of partition p of its inputs: its own
entries, and one head that says where they stand. They change together, in one transaction.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from .connection import Connection
from .log import Record, SourceGap, consumer, stop_consumer
from .patience import Patience

HEAD_KEY = b"head"
MAX_GAPS = 100  # kept on record in a head, the newest of them; 50 kB
ORIGIN = "origin"  # the header that names a record's cause
ORIGIN_ROOM = ((ORIGIN, b"0" * 280),)  # as large as one gets: a topic's 249 characters and three numbers
FETCH_WAIT_MS = 1  # all that is asked for is there already, and what is asked next would wait behind a fetch
NOTHING_SEEN = (-1, -1)
READ_TIMEOUT_MS = 1_000  # one poll of a takeover's read; an unreachable broker fails the client before


Held = Callable[[bytes, bytes], bytes]


class LastRecord(msgspec.Struct, frozen=True):
    """The last record read of an input: its hash tells a topic from one made anew under its name."""

    offset: int
    hash: str


class Gap(msgspec.Struct, frozen=True):
    """Offsets [start, end) of an input that retention took unread, and who let the agent pass over them."""

    place: str
    start: int
    end: int
    reason: str = ""
    by: str = ""
    at_ms: int = 0


class Head(msgspec.Struct, frozen=True):
    """Where a partition's state stands. Keys of the mappings are "topic/partition"."""

    revision: str
    positions: dict[str, int]
    seen: dict[str, dict[str, tuple[int, int]]]
    last: dict[str, LastRecord]
    drained: bool = False
    gaps: Sequence[Gap] = ()


class RevisionMismatch(Exception):
    """A store was written under another revision of the pipeline, by agents that may still write."""


class StoreLost(Exception):
    """A store holds less than its agent wrote: going on from it would lose, double or alter."""


def place(tp: TopicPartition) -> str:
    return f"{tp.topic}/{tp.partition}"


def record_hash(record: Record) -> str:
    digest = blake2b(record.key or b"", digest_size=8)
    digest.update(b"\0" + (record.value or b""))
    return digest.hexdigest()


@dataclass
class Progress:
    """How far the inputs of one partition were read, and which causes were seen.

    An input in `filtered` is written by agents under the origin rule: of each source it admits only
    what is greater than the greatest `(offset, n)` so far. Others are admitted by offset alone.
    """

    positions: dict[TopicPartition, int]
    filtered: frozenset[str] = frozenset()  # topics
    seen: dict[TopicPartition, dict[bytes, tuple[int, int]]] = field(default_factory=dict)
    last: dict[TopicPartition, LastRecord] = field(default_factory=dict)
    gaps: Sequence[Gap] = ()
    repeats: int = 0

    def admit(self, tp: TopicPartition, records: Sequence[Record]) -> Sequence[Record]:
        """The records of a batch that were not read before; the position moves past all of them."""
        position = self.positions[tp]
        fresh = [r for r in records if r.offset >= position] if records[0].offset < position else records
        if not fresh:
            return fresh
        newest = fresh[-1]
        self.positions[tp] = newest.offset + 1
        self.last[tp] = LastRecord(newest.offset, record_hash(newest))
        if tp.topic not in self.filtered:
            return fresh
        first_seen = self._unseen(self.seen.setdefault(tp, {}), fresh)
        self.repeats += len(fresh) - len(first_seen)
        return first_seen

    def pass_over(self, tp: TopicPartition, reached: int) -> bool:
        """Moves past transaction markers: retention may take them, and no record would be missing."""
        moved = reached > self.positions[tp]
        if moved:
            self.positions[tp] = reached
        return moved

    @staticmethod
    def _unseen(seen: dict[bytes, tuple[int, int]], records: Sequence[Record]) -> list[Record]:
        unseen = []
        for record in records:
            headers = record.headers
            first = headers[0] if headers else ("", b"")
            try:
                # As Origin.parse, whose tuple would be made for every record there is.
                header = first[1] if first[0] == ORIGIN else origin_header(record)
                source, offset, n = (header or b"").rsplit(b"/", 2)
                at = (int(offset), int(n))
            except ValueError:  # written by a foreign program: there is no cause to compare
                unseen.append(record)
                continue
            if at > seen.get(source, NOTHING_SEEN):
                seen[source] = at
                unseen.append(record)
        return unseen

    def head(self, revision: str, *, drained: bool) -> Head:
        return Head(
            revision=revision,
            positions={place(tp): offset for tp, offset in self.positions.items()},
            seen={place(tp): {s.decode(): at for s, at in by.items()} for tp, by in self.seen.items()},
            last={place(tp): last for tp, last in self.last.items()},
            drained=drained,
            gaps=self.gaps,
        )

    @classmethod
    def restore(cls, head: Head, inputs: Iterable[TopicPartition], filtered: frozenset[str]) -> Progress:
        return cls(
            positions={tp: head.positions[place(tp)] for tp in inputs},
            filtered=filtered,
            seen={tp: {s.encode(): at for s, at in head.seen.get(place(tp), {}).items()} for tp in inputs},
            last={tp: head.last[place(tp)] for tp in inputs if place(tp) in head.last},
            gaps=head.gaps,
        )


def origin_header(record: Record) -> bytes | None:
    """The origin header; agents write it first."""
    for name, value in record.headers:
        if name == ORIGIN:
            return value
    return None


class Inspector:
    """Reads single partitions to their end, and single records; for takeovers, not for the hot path.

    Every read raises TopicMissing or NoAnswer if it stands still.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._consumer: AIOKafkaConsumer = consumer(connection, fetch_max_wait_ms=FETCH_WAIT_MS)

    async def __aenter__(self) -> Inspector:
        try:
            await self._consumer.start()
        except BaseException:
            await stop_consumer(self._consumer)  # else aiokafka complains of it as it is collected
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await stop_consumer(self._consumer)

    async def read_all(self, tp: TopicPartition, last: int | None = None) -> list[Record]:
        """Every committed record of the partition as of now, or of its `last` offsets."""
        return [record async for records in self._batches(tp, last) for record in records]

    async def read_table(self, tp: TopicPartition, held: Held = lambda _, value: value) -> dict[bytes, bytes]:
        """The table that the committed records of a compacted partition stand for, as of now.

        `held` says what of a key's value is to be held, so that a table needs no more memory than its reader.
        """
        table: dict[bytes, bytes] = {}
        async for records in self._batches(tp):
            fold(table, records, held)
        return table

    async def _batches(
        self, tp: TopicPartition, last: int | None = None
    ) -> AsyncGenerator[Sequence[Record], None]:
        begin, end = await self.range(tp)
        async with aclosing(self.batches(tp, None if last is None else max(begin, end - last))) as batches:
            async for records in batches:
                yield records

    async def offset_at(self, tp: TopicPartition, at_ms: int) -> int:
        """Of the first record appended then or later; the partition's end if there is none."""
        async with Patience(self._connection, tp.topic).answer("no offsets"):
            found = (await self._consumer.offsets_for_times({tp: at_ms}))[tp]
        return (await self.range(tp))[1] if found is None else int(found.offset)

    async def batches(
        self, tp: TopicPartition, begin: int | None = None
    ) -> AsyncGenerator[Sequence[Record], None]:
        """The committed records from an offset on, or all that are kept, up to the end as of now."""
        least, end = await self.range(tp)
        begin = least if begin is None else max(begin, least)
        if begin >= end:
            return
        self._consumer.assign([tp])
        self._consumer.seek(tp, begin)
        patience = Patience(self._connection, tp.topic)
        while (position := await self._consumer.position(tp)) < end:
            await patience.at(position)
            got = await self._consumer.getmany(tp, timeout_ms=READ_TIMEOUT_MS)
            yield got.get(tp, ())
        self._consumer.assign([])  # aiokafka would go on asking for what comes next

    async def has_effect(self, tp: TopicPartition, sources: Collection[TopicPartition]) -> bool:
        """Whether any committed record of the partition names one of these as its cause."""
        named = {place(source).encode() for source in sources}
        async with aclosing(self._batches(tp)) as batches:
            async for records in batches:
                for record in records:
                    if (origin_header(record) or b"").rsplit(b"/", 2)[0] in named:
                        return True
        return False

    async def range(self, tp: TopicPartition) -> tuple[int, int]:
        """(the log's start, its end as read_committed sees it)."""
        async with Patience(self._connection, tp.topic).answer("no offsets"):
            begin = await self._consumer.beginning_offsets([tp])
            end = await self._consumer.end_offsets([tp])
        return begin[tp], end[tp]

    async def check(
        self, positions: Mapping[TopicPartition, int], last: Mapping[TopicPartition, LastRecord]
    ) -> None:
        """Raises SourceGap unless every input still is the log that was read up to here."""
        for tp, position in positions.items():
            begin, end = await self.range(tp)
            if not begin <= position <= end:
                raise SourceGap({tp: position})
            if tp in last and last[tp].offset >= begin:
                found = await self._record_at(tp, last[tp].offset)
                if found is None or record_hash(found) != last[tp].hash:
                    raise SourceGap({tp: position})

    async def _record_at(self, tp: TopicPartition, offset: int) -> Record | None:
        self._consumer.assign([tp])
        self._consumer.seek(tp, offset)
        patience = Patience(self._connection, tp.topic)
        while (position := await self._consumer.position(tp)) <= offset:
            await patience.at(position)
            got = await self._consumer.getmany(tp, timeout_ms=READ_TIMEOUT_MS, max_records=1)
            for record in got.get(tp, ()):
                self._consumer.assign([])
                return record if record.offset == offset else None
        return None

    async def beginnings(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        async with Patience(self._connection, *{tp.topic for tp in tps}).answer("no offsets"):
            return dict(await self._consumer.beginning_offsets(list(tps)))


def latest(records: Iterable[Record]) -> dict[bytes, bytes]:
    """The table that a compacted partition stands for."""
    table: dict[bytes, bytes] = {}
    fold(table, records)
    return table


def fold(table: dict[bytes, bytes], records: Iterable[Record], held: Held = lambda _, value: value) -> None:
    """Brings a table up to date: the last value of a key counts, tombstones remove.

    Its entries stand in the order in which they were written last, as compaction leaves them.
    """
    for record in records:
        if record.key is None:
            continue
        table.pop(record.key, None)
        if record.value is not None:
            table[record.key] = held(record.key, record.value)
