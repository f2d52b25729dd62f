"""What a small real pipeline left on Kafka, as records in memory that a test may tamper with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec

from riverkeeper import Pipeline
from riverkeeper.audit.ledger import ORDER, Ledger
from riverkeeper.audit.report import Finding, Notebook, Topic
from riverkeeper.audit.rule import Extent, Horizon
from riverkeeper.audit.scratch import Scratch
from riverkeeper.supervisor.operator import issue
from riverkeeper.topics.messages import Prediction, State
from tests.brokers.broker import Broker
from tests.system.harness import SIGNING_KEY, Event, World, world
from tests.system.play import finished

KEY = SIGNING_KEY.encode()
AGENTS = ("ingest", "score", "join", "learn")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = 180  # of each of four parts: without a version, served, quarantined, served again
SENSORS = 12
JUNK = (b"{", b'{"id": 1, "type": "reading"}', b'{"id": "x", "type": "unheard", "time": 1}')


@dataclass(unsafe_hash=True)
class Rec:
    """A record, as a reader gets it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]

    def json(self) -> Any:
        return msgspec.json.decode(self.value or b"")

    def saying(self, **fields: object) -> Rec:
        """With these fields of its JSON replaced."""
        return replace(self, value=msgspec.json.encode(self.json() | fields))

    @property
    def origin(self) -> tuple[str, int, int, int]:
        topic, partition, offset, n = dict(self.headers)["origin"].decode().rsplit("/", 3)
        return topic, int(partition), int(offset), int(n)

    @property
    def source(self) -> tuple[str, int]:
        return self.origin[:2]

    def caused_by(self, topic: str, partition: int, offset: int, n: int) -> Rec:
        origin = f"{topic}/{partition}/{offset}/{n}".encode()
        return replace(self, headers=(("origin", origin), *self.headers[1:]))


@dataclass
class Tape:
    """Every topic's records by partition."""

    pipeline: Pipeline
    topics: dict[Topic, list[list[Rec]]]
    positions: dict[tuple[Topic, int], int] = field(default_factory=dict)

    def copy(self) -> Tape:
        return Tape(self.pipeline, deepcopy(self.topics), dict(self.positions))

    def all(self, topic: Topic) -> Iterator[Rec]:
        for records in self.topics[topic]:
            yield from records

    def end(self, topic: Topic, partition: int) -> int:
        records = self.topics[topic][partition]
        return records[-1].offset + 1 if records else 0

    # Tampering.

    def remove(self, topic: Topic, record: Rec) -> None:
        self.topics[topic][record.partition].remove(record)

    def put(self, topic: Topic, old: Rec, new: Rec) -> None:
        records = self.topics[topic][old.partition]
        records[records.index(old)] = new

    def append(self, topic: Topic, record: Rec) -> Rec:
        """Once more, behind the last."""
        last = self.topics[topic][record.partition][-1]
        again = replace(record, offset=last.offset + 1, timestamp=last.timestamp)
        self.topics[topic][record.partition].append(again)
        return again

    def swap(self, topic: Topic, first: Rec, second: Rec) -> None:
        """Each at the other's place and time."""
        moved = {
            first.offset: replace(second, offset=first.offset, timestamp=first.timestamp),
            second.offset: replace(first, offset=second.offset, timestamp=second.timestamp),
        }
        records = self.topics[topic][first.partition]
        self.topics[topic][first.partition] = [moved.get(r.offset, r) for r in records]

    def audited(
        self,
        *,
        begins: dict[tuple[Topic, int], int] | None = None,
        final: Tape | None = None,
        early: dict[tuple[Topic, int], int] | None = None,
        obeyed_within_ms: int = 2_000,
    ) -> Notebook:
        """The ledger over these records, without a broker. `final` is what stands there once all was read."""
        begins = begins or {}
        extents = {}
        for topic, partitions in self.topics.items():
            for p, records in enumerate(partitions):
                begin = begins.get((topic, p), 0)
                since = next((r.timestamp for r in records if r.offset >= begin), 0)
                extents[topic, p] = Extent(begin, max(begin, self.end(topic, p)), begin == 0, since)
        ends = {place: (final or self).end(*place) for place in extents}
        with Scratch() as scratch:
            horizon = Horizon(extents, self.positions, ends, early or {})
            ledger = Ledger(self.pipeline, horizon, scratch, key=KEY, obeyed_within_ms=obeyed_within_ms)
            for topic in ORDER:
                for p, records in enumerate(self.topics[topic]):
                    ledger.read(topic, p, [r for r in records if r.offset >= begins.get((topic, p), 0)])
            return ledger.settle()


def shown(findings: Sequence[Finding]) -> str:
    return "\n".join(map(str, findings))


class Sensors:
    """Readings and what came true; of each fact an event, of nearly each an outcome."""

    def __init__(self, seed: int = 5) -> None:
        self._rng = Random(seed)
        self._count = 0

    def events(self, facts: int) -> list[Event]:
        events = []
        for _ in range(facts):
            self._count += 1
            number, level = f"n{self._count}", round(self._rng.uniform(10.0, 90.0), 3)
            sensor = f"s{self._count % SENSORS}"
            time = (BEGAN + timedelta(seconds=self._count)).isoformat()
            reading = {"sensor": sensor, "number": number, "level": level, "kind": "a"}
            events.append(_event(sensor, {"id": f"r/{number}", "type": "reading", "time": time} | reading))
            if self._count % 10:
                truth = {"number": number, "level": round(level * 1.1 + self._rng.gauss(0.0, 1.0), 3)}
                events.append(_event(sensor, {"id": f"t/{number}", "type": "truth", "time": time} | truth))
        return events


def _event(key: str, fields: dict[str, object]) -> Event:
    return Event(key, msgspec.json.encode(fields))


async def recorded(broker: Broker) -> Tape:
    """Runs a pipeline whose model is quarantined and admitted again, with junk and repeats amid its events."""
    sensors, sent, repeated = Sensors(), 0, 0
    async with world(broker, "gauges") as it:
        async with it.running(AGENTS):
            for state in (None, None, State.QUARANTINED, State.LIVE):
                await _settled(it, sent - repeated)
                if state is not None:
                    await issue(it.connection, it.pipeline, "line", state, "as the test asks", by="a test")
                events = sensors.events(FACTS)
                batch = [*events, *events[:5], *(Event(f"s{i}", junk) for i, junk in enumerate(JUNK))]
                sent, repeated = sent + len(batch), repeated + 5
                await it.feed(batch, repeated)
            await _settled(it, sent - repeated)
        await it.outside.read_up()
        return _tape(it)


async def _settled(it: World, effects: int) -> None:
    if effects:
        await finished(it, effects)


def _tape(it: World) -> Tape:
    topics: dict[Topic, list[list[Rec]]] = {}
    for topic in Topic:
        counts = {Topic.MODELS: it.pipeline.model_partitions, Topic.VERDICTS: 1}
        topics[topic] = [[] for _ in range(counts.get(topic, it.pipeline.partitions))]
        for r in it.outside[topic.suffix]:
            headers = tuple((name, value) for name, value in r.headers)
            topics[topic][r.partition].append(
                Rec(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, headers)
            )
    tape = Tape(it.pipeline, topics)
    inputs = (Topic.EVENTS, Topic.FACTS, Topic.PREDICTIONS, Topic.OUTCOMES)
    tape.positions = {(t, p): tape.end(t, p) for t in inputs for p in range(it.pipeline.partitions)}
    return tape


def record(broker: Broker) -> Tape:
    return asyncio.run(recorded(broker))


def prediction(record: Rec) -> Prediction:
    return msgspec.json.decode(record.value or b"", type=Prediction)
