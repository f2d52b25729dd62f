"""ingest: events become facts, outcomes or dead letters, exactly one of them each.

What becomes of an event depends on the event, the pipeline's revision and the ids before it in its
partition; never on a clock. Times here are the log's append times.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
import orjson
from aiokafka import TopicPartition
from msgspec import UNSET

from ..models.pipeline import Dedupe, Pipeline
from ..topics.cloudevents import Event, decode, loads
from ..topics.log import MAX_RECORD_BYTES, Out, Record, record_bytes
from ..topics.messages import UNREADABLE, BadRecord, Envelope, ErrorCode, Fact, Span, Vitals
from ..topics.partition import partitions
from ..topics.store import ORIGIN, ORIGIN_ROOM, Inspector, Progress
from .agent import Agent, Entry, Table
from .line import Line
from .onepass import Read, one_pass
from .work import Tracked, check_store, dead_letter, resume

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # before the log's own clock there is no event
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
MAX_KEY_BYTES = 1_024  # of key and join field: a prediction holds both, and the join field twice
MAX_ID_CHARS = 512  # a million remembered ids stay below 1 GB
IDS_PER_ENTRY = 250  # ids in one record of the store: 0.8 MB if each is the longest and all is escaped
IDS_PREFIX = b"ids/"
ID = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]
PLACE = Annotated[str, msgspec.Meta(max_length=MAX_KEY_BYTES // 4)]  # no character has more than four bytes
MAX_OTHERWISE = (
    1_000  # more events that one pass would not do for than those it did: it is not tried any longer
)
FACT_ROOM = record_bytes(None, None, ORIGIN_ROOM)  # of a record to write, beside key and value


class Parsed(NamedTuple):
    """An event as it goes on: `suffix` is "facts" or "outcomes"."""

    suffix: str
    key: bytes
    id: str
    value: bytes
    time: datetime


class _Route(NamedTuple):
    """Where events of a type go: the field that keys them there, and those that place what follows from them."""

    declared: type[Fact]
    suffix: str
    key: str
    placed_by: tuple[str, ...]


class _Quick(NamedTuple):
    """How a plain event of a type may be read at once; `mark` stands in each of them."""

    mark: bytes
    name: str
    route: _Route
    read: Read


class Parser:
    """From a record of `events` to a fact or an outcome; pure."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._encode = msgspec.json.Encoder().encode
        self._fields = (pipeline.event.id, pipeline.event.type, pipeline.event.time)
        self._routes = {
            name: _Route(declared, "facts", pipeline.key, (pipeline.key, pipeline.join))
            if declared is pipeline.facts
            else _Route(declared, "outcomes", pipeline.join, (pipeline.join,))
            for name, declared in pipeline.types.items()
        }
        self._quick = list(self._readers())
        self._at_once = self._otherwise = 0

    def _readers(self) -> Iterator[_Quick]:
        for name, route in self._routes.items():
            read = one_pass(
                route.declared, name, self._pipeline.event, ID, dict.fromkeys(route.placed_by, PLACE)
            )
            if read is not None:
                yield _Quick(f'"{name}"'.encode(), name, route, read)

    def parse(self, record: Record) -> Parsed:
        """Raises BadRecord."""
        if record.key is None and self._pipeline.dedupe is not None:
            raise BadRecord(
                ErrorCode.NO_KEY, "an event without a key may reach another partition when it is sent again"
            )
        value = record.value or b""
        if len(value) > MAX_RECORD_BYTES:
            raise BadRecord(ErrorCode.TOO_LARGE, f"{len(value)} bytes; {MAX_RECORD_BYTES} are the limit")
        if self._quick and not record.headers:
            parsed = self._in_one_pass(value)
            if parsed is not None:
                self._at_once += 1
                return parsed
            self._otherwise += 1
            if self._otherwise > self._at_once + MAX_OTHERWISE:
                self._quick = []
        event = decode(record.headers, value) or self._plain(loads(value))
        return self._typed(event, record.timestamp)

    def _in_one_pass(self, value: bytes) -> Parsed | None:
        """None for an event that is to be read otherwise, or is bad."""
        for mark, name, route, read in self._quick:
            if mark not in value:
                continue
            try:
                event = read(value)
            except UNREADABLE:
                continue
            id, time = event._id, event._time
            if not EARLIEST <= time < LATEST:
                return None
            key = getattr(event, route.key)
            event._id = event._type = event._time = UNSET
            envelope = Envelope(id=id, type=name, time=time, key=key, data=event)
            return tuple.__new__(Parsed, (route.suffix, key.encode(), id, self._encode(envelope), time))
        return None

    def _plain(self, data: Any) -> Event:
        if not isinstance(data, dict):
            raise BadRecord(ErrorCode.WRONG_TYPE, f"an event is a JSON object, not {type(data).__name__}")
        id, type_, time = map(data.get, self._fields)
        if id is None or type_ is None or time is None:
            name = next(name for name in self._fields if data.get(name) is None)
            raise BadRecord(ErrorCode.MISSING_FIELD, f"field {name!r} is missing")
        return Event(id, type_, time, data)

    def _typed(self, event: Event, appended_ms: int) -> Parsed:
        route = self._routes.get(event.type) if isinstance(event.type, str) else None
        if route is None:
            known = ", ".join(sorted(self._pipeline.types))
            raise BadRecord(ErrorCode.UNKNOWN_TYPE, f"type {event.type!r} is none of {known}")
        data = _payload(event.data, route.declared)
        for name in route.placed_by:
            placed = getattr(data, name)
            # No character has more than four bytes.
            if type(placed) is not str or len(placed) > MAX_KEY_BYTES // 4:
                _check_place(name, placed)
        key = str(getattr(data, route.key))
        id = _id(event.id)
        time = _time(event.time if event.time is not None else appended_ms)
        envelope = Envelope(id=id, type=event.type, time=time, key=key, data=data)
        return Parsed(route.suffix, key.encode(), id, self._encode(envelope), time)


def _check_place(name: str, placed: object) -> None:
    if placed is None:
        raise BadRecord(ErrorCode.MISSING_FIELD, f"field {name!r} is null, but places the record")
    if len(str(placed).encode()) > MAX_KEY_BYTES:
        raise BadRecord(
            ErrorCode.TOO_LARGE, f"field {name!r} places the record; {MAX_KEY_BYTES} bytes at most"
        )


def _payload(data: Any, declared: type[Fact]) -> Fact:
    try:
        return msgspec.convert(data, declared)
    except msgspec.ValidationError as error:
        missing = "missing required field" in str(error)
        raise BadRecord(ErrorCode.MISSING_FIELD if missing else ErrorCode.WRONG_TYPE, str(error)) from error


def _id(id: Any) -> str:
    if type(id) is str and 0 < len(id) <= MAX_ID_CHARS:
        return id
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not 0 < len(id) <= MAX_ID_CHARS:
        raise BadRecord(
            ErrorCode.WRONG_TYPE, f"an id is a text of 1 to {MAX_ID_CHARS} characters, or an integer"
        )
    return id


def _time(time: Any) -> datetime:
    """ISO 8601 with an offset, or epoch milliseconds."""
    try:
        if isinstance(time, int) and not isinstance(time, bool):
            parsed = EARLIEST + timedelta(milliseconds=time)
        else:
            parsed = msgspec.convert(time, datetime)
    except (msgspec.ValidationError, OverflowError) as error:
        raise BadRecord(ErrorCode.BAD_TIME, f"time {time!r:.80}: {error}") from error
    if parsed.tzinfo is None:
        raise BadRecord(ErrorCode.BAD_TIME, f"time {time!r:.80} has no offset from UTC")
    if not EARLIEST <= parsed < LATEST:
        raise BadRecord(ErrorCode.BAD_TIME, f"time {time!r:.80} is outside 1970 to 2200")
    return parsed


class RecentIds:
    """The ids of one partition within a window of append time, and what of them is not stored yet.

    What it holds follows from the ids it added, in their order, and from nothing else: so it is the
    same after a restore, even if append times step back because another broker leads.
    """

    def __init__(self, dedupe: Dedupe) -> None:
        self._window = int(dedupe.window / timedelta(milliseconds=1))
        self._limit = dedupe.ids
        self._ids: dict[str, int] = {}  # id -> append time in ms
        # A dict finds its first in linear time. An id that came again stands twice.
        self._order: Line[str] = Line([])
        self._newest = 0  # append time of the newest id in ms
        self._new: list[tuple[str, int]] = []
        self._stored: deque[tuple[int, int]] = (
            deque()
        )  # (number of a stored entry, append time of its newest id)
        self._next = 0

    def seen(self, id: str, appended_ms: int) -> bool:
        """Whether the id came before within the window; remembers it if not."""
        at = appended_ms if appended_ms > self._newest else self._newest
        known = self._ids.get(id)
        if known is not None and known >= at - self._window:
            return True
        self._add(id, at)
        self._new.append((id, at))
        return False

    def _add(self, id: str, at: int) -> None:
        order = self._order
        while order.first < at - self._window:
            self._forget_oldest()
        self._ids[id] = self._newest = at
        order.push(at, id)
        while order.count > self._limit:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        at, id = self._order.pop()
        if self._ids.get(id) == at:
            del self._ids[id]

    def changes(self) -> list[Entry]:
        entries: list[Entry] = []
        for i in range(0, len(self._new), IDS_PER_ENTRY):
            part = self._new[i : i + IDS_PER_ENTRY]
            entries.append((self._key(self._next), orjson.dumps(part)))
            self._stored.append((self._next, part[-1][1]))
            self._next += 1
        self._new = []
        return [*entries, *self._expired_entries()]

    def _expired_entries(self) -> list[Entry]:
        expired: list[Entry] = []
        while self._order.count and self._stored and self._stored[0][1] < self._order.first:
            expired.append((self._key(self._stored.popleft()[0]), None))
        return expired

    def restore(self, table: Mapping[bytes, bytes]) -> None:
        numbered = sorted(
            (int(k[len(IDS_PREFIX) :]), v) for k, v in table.items() if k.startswith(IDS_PREFIX)
        )
        for number, value in numbered:
            part = orjson.loads(value)
            for id, at in part:
                self._add(id, at)
            self._stored.append((number, part[-1][1]))
            self._next = number + 1

    @staticmethod
    def _key(number: int) -> bytes:
        return b"%b%d" % (IDS_PREFIX, number)


class IngestWork(Tracked):
    """Partition p of `events`."""

    def __init__(self, agent: Ingest, progress: Progress, recent: RecentIds | None, *, fresh: bool) -> None:
        super().__init__(progress, agent.pipeline.revision, agent.runtime.limits, fresh=fresh)
        self._pipeline = agent.pipeline
        self._telemetry = agent.runtime.telemetry
        self._runtime = agent.runtime
        self._counts: Counter[str] = Counter()  # since the last vitals, as is all below
        self._span: Span | None = None
        self._event_ms = 0
        self._since_ms = agent.runtime.now_ms()
        self._parser = Parser(agent.pipeline)
        self._recent = recent

    async def step(self, tp: TopicPartition, records: Sequence[Record]) -> list[Out]:
        parsed: list[tuple[Record, Parsed]] = []
        dead: list[Out] = []
        for record in records:
            try:
                made = self._checked(record, self._parser.parse(record))
            except BadRecord as bad:
                dead.append(dead_letter(self._pipeline, record, bad))
                self._telemetry.dead("ingest", bad.code)
                continue
            if made is not None:
                parsed.append((record, made))
        self._telemetry.duplicates("ingest", len(records) - len(parsed) - len(dead))
        self._count(tp.partition, records, parsed, len(dead))
        return [*self._outs(tp, parsed), *dead]

    def _checked(self, record: Record, parsed: Parsed) -> Parsed | None:
        """None for an id that came before. Raises BadRecord if what was made is too large."""
        if FACT_ROOM + len(parsed.key) + len(parsed.value) > MAX_RECORD_BYTES:
            raise BadRecord(
                ErrorCode.TOO_LARGE, f"{len(parsed.value)} bytes as a fact; {MAX_RECORD_BYTES} are the limit"
            )
        if self._recent is not None and self._recent.seen(parsed.id, record.timestamp):
            return None
        return parsed

    def _outs(self, tp: TopicPartition, parsed: Sequence[tuple[Record, Parsed]]) -> list[Out]:
        source = f"{tp.topic}/{tp.partition}".encode()
        where = partitions([made.key for _, made in parsed], self._pipeline.partitions)
        topics = {suffix: self._pipeline.topic(suffix) for suffix in ("facts", "outcomes")}
        return [
            # A NamedTuple's own constructor is a function of Python. The header is Origin's.
            tuple.__new__(
                Out,
                (topics[suffix], partition, key, value, ((ORIGIN, b"%b/%d/0" % (source, record.offset)),)),
            )
            for (record, (suffix, key, _, value, _)), partition in zip(parsed, where, strict=True)
        ]

    def _count(
        self, partition: int, records: Sequence[Record], parsed: Sequence[tuple[Record, Parsed]], dead: int
    ) -> None:
        self._counts.update(made.suffix for _, made in parsed)
        self._counts["dead"] += dead
        self._counts["duplicates"] += len(records) - len(parsed) - dead
        start = self._span.start if self._span is not None else records[0].offset
        self._span = Span(partition, start, records[-1].offset + 1)
        if parsed:
            self._event_ms = max(self._event_ms, int(parsed[-1][1].time.timestamp() * 1000))

    def vitals(self) -> list[Vitals]:
        since, self._since_ms = self._since_ms, self._runtime.now_ms()
        counts, self._counts = self._counts, Counter()
        span, self._span = self._span, None
        event_ms, self._event_ms = self._event_ms, 0
        return [
            Vitals(
                agent="ingest",
                replica=self._runtime.replica,
                model="",
                spans=(span,) if span is not None else (),
                from_ms=since,
                to_ms=self._since_ms,
                counts={name: n for name, n in counts.items() if n},
                event_ms=event_ms,
            )
        ]

    def changes(self) -> list[Entry]:
        return self._recent.changes() if self._recent is not None else []


class Ingest(Agent):
    name = "ingest"

    @property
    def group_topics(self) -> list[str]:
        return [self.pipeline.topic("events")]

    async def open(self, partition: int, table: Table, inspector: Inspector) -> IngestWork:
        inputs = [TopicPartition(self.pipeline.topic("events"), partition)]
        topics = [self.pipeline.topic(suffix) for suffix in ("facts", "outcomes")]
        outputs = [TopicPartition(t, p) for t in topics for p in range(self.pipeline.partitions)]
        await check_store(self, partition, table, inputs, outputs, inspector)
        progress, fresh = await resume(self.pipeline, table, inputs, frozenset(), inspector)
        recent = RecentIds(self.pipeline.dedupe) if self.pipeline.dedupe is not None else None
        if recent is not None:
            recent.restore(table)
        return IngestWork(self, progress, recent, fresh=fresh)
