"""The stretch of the log that a replay lives through: predictions and examples in the order of their append times."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import TypeVar

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from ..models.pipeline import Pipeline
from ..topics.catalog import Catalog
from ..topics.connection import Connection
from ..topics.log import Record, consumer, stop_consumer
from ..topics.messages import UNREADABLE, Example, Prediction
from ..topics.patience import Patience
from ..topics.store import Progress
from .worlds import Row, World

FETCHED = 500  # records of one fetch; as many are held of each partition at most
WAIT_MS = 500  # of one fetch
RUN = 500  # records of one kind that worlds take at once; between two runs others get their turn

NEVER = 2**63 - 1  # ms

Decoded = TypeVar("Decoded", Prediction, Example)
Told = Callable[[str, int, int], None]  # what is read, records done, records in all


@dataclass(frozen=True)
class Replay:
    """What a replay came to."""

    predictions: int  # made in the stretch
    examples: int  # whose outcome came until its end, or after it for a prediction made in it
    unreadable: int
    began_ms: int  # append time of the first record and of the last; 0 if there are none
    ended_ms: int
    rows: Sequence[Row]


async def replay(
    pipeline: Pipeline,
    connection: Connection,
    worlds: Sequence[World],
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    told: Told | None = None,
) -> Replay:
    """Lives the worlds through what was appended in [since, until). Reads two topics, and writes nothing.

    Outcomes are read up to the end of the log: those of the last predictions come after the stretch, and are
    compared but no longer learned. Raises TopicMissing, and NoAnswer if the log gives nothing more.
    """
    names = {kind: pipeline.topic(kind) for kind in ("predictions", "examples")}
    async with Catalog(connection) as catalog:
        counts = {name: await catalog.partition_count(name) for name in names.values()}
        by_time = not await catalog.embedded()  # which finds no offset by time
    tps = [TopicPartition(name, p) for name, count in counts.items() for p in range(count)]
    reading = consumer(connection)
    try:
        await reading.start()
        from_ms = 0 if since is None else _ms(since)
        stretch = await _Stretch.of(reading, connection, tps, from_ms if by_time else 0)
        lived = _Lived(names, worlds, from_ms, NEVER if until is None else _ms(until))
        async for records in stretch.in_order():
            lived.take(records)
            if told is not None:
                told("replay", stretch.done, stretch.total)
    finally:
        await stop_consumer(reading)
    return lived.told()


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


class _Stretch:
    """Partitions read side by side: of each only as much is held as one fetch brings."""

    def __init__(
        self,
        reading: AIOKafkaConsumer,
        patience: Patience,
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> None:
        self._reading, self._patience = reading, patience
        self._ends = {tp: end for tp, end in ends.items() if begins[tp] < end}
        self._held: dict[TopicPartition, deque[Record]] = {tp: deque() for tp in self._ends}
        # Copies of one prediction are told by their origin, and the first counts.
        filtered = frozenset(tp.topic for tp in begins)
        self._progress = Progress(dict(begins), filtered)
        self._begins = begins
        self.total = sum(end - begins[tp] for tp, end in self._ends.items())

    @classmethod
    async def of(
        cls,
        reading: AIOKafkaConsumer,
        connection: Connection,
        tps: Sequence[TopicPartition],
        from_ms: int,
    ) -> _Stretch:
        patience = Patience(connection, *{tp.topic for tp in tps})
        async with patience.answer("no offsets"):
            begins = dict(await reading.beginning_offsets(tps))
            ends = dict(await reading.end_offsets(tps))
            if from_ms:
                found = await reading.offsets_for_times(dict.fromkeys(tps, from_ms))
                begins = {tp: found[tp].offset if found[tp] is not None else ends[tp] for tp in tps}
        stretch = cls(reading, patience, begins, ends)
        reading.assign(list(stretch._ends))
        for tp in stretch._ends:
            reading.seek(tp, begins[tp])
        return stretch

    @property
    def done(self) -> int:
        return sum(self._progress.positions[tp] - self._begins[tp] for tp in self._ends)

    async def in_order(self) -> AsyncIterator[list[Record]]:
        """Batches of records, in the order of their append times over all partitions."""
        open_ = set(self._held)
        while open_ or any(self._held.values()):
            await self._fill(open_)
            yield list(self._ready(open_))

    async def _fill(self, open_: set[TopicPartition]) -> None:
        """Leaves no open partition without a record: the earliest of all is then among those held."""
        while empty := [tp for tp in open_ if not self._held[tp]]:
            await self._patience.at(self.done)
            got = await self._reading.getmany(*empty, timeout_ms=WAIT_MS, max_records=FETCHED)
            for tp in empty:
                records = [r for r in got.get(tp, ()) if r.offset < self._ends[tp]]
                if records:
                    self._held[tp].extend(self._progress.admit(tp, records))
                self._progress.pass_over(tp, min(await self._reading.position(tp), self._ends[tp]))
                if self._progress.positions[tp] >= self._ends[tp]:
                    open_.discard(tp)

    def _ready(self, open_: set[TopicPartition]) -> Iterator[Record]:
        """What comes before anything that is not held yet."""
        heap = [(held[0].timestamp, tp) for tp, held in self._held.items() if held]
        heapq.heapify(heap)
        while heap:
            _, tp = heapq.heappop(heap)
            held = self._held[tp]
            yield held.popleft()
            if held:
                heapq.heappush(heap, (held[0].timestamp, tp))
            elif tp in open_:
                return


class _Lived:
    """Takes records in order to the worlds."""

    def __init__(
        self, names: Mapping[str, str], worlds: Sequence[World], from_ms: int, until_ms: int
    ) -> None:
        self._predictions, self._examples = names["predictions"], names["examples"]
        self._worlds = worlds
        self._from_ms, self._until_ms = from_ms, until_ms
        self._prediction = msgspec.json.Decoder(Prediction).decode
        self._example = msgspec.json.Decoder(Example).decode
        self._counts = {self._predictions: 0, self._examples: 0}
        self._unreadable = 0
        self._began = self._ended = 0

    def take(self, records: Sequence[Record]) -> None:
        for topic, some in groupby(records, key=lambda record: record.topic):
            run = list(some)
            for at in range(0, len(run), RUN):
                self._take(topic, run[at : at + RUN])

    def _take(self, topic: str, records: Sequence[Record]) -> None:
        inside = [r for r in records if self._from_ms <= r.timestamp < self._until_ms]
        after = [r for r in records if r.timestamp >= self._until_ms]
        if inside:
            self._began = self._began or inside[0].timestamp
            self._ended = inside[-1].timestamp
        if topic == self._predictions:
            predictions = self._decoded(self._prediction, inside)
            self._counts[topic] += len(predictions)
            for world in self._worlds:
                world.predicted(predictions)
            return
        examples, late = self._decoded(self._example, inside), self._decoded(self._example, after)
        self._counts[topic] += len(examples) + len(late)
        for world in self._worlds:
            world.came_true(examples)
            world.came_true(late, learn=False)

    def _decoded(self, decode: Callable[[bytes], Decoded], records: Sequence[Record]) -> list[Decoded]:
        found = []
        for record in records:
            try:
                found.append(decode(record.value or b""))
            except UNREADABLE:
                self._unreadable += 1
        return found

    def told(self) -> Replay:
        return Replay(
            predictions=self._counts[self._predictions],
            examples=self._counts[self._examples],
            unreadable=self._unreadable,
            began_ms=self._began,
            ended_ms=self._ended,
            rows=[world.row() for world in self._worlds],
        )
