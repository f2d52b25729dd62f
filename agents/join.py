"""join: predictions meet their outcomes and become examples.

Either may come first, so both wait, each for the declared time, measured by the append times of the
*other's* topic: a lagging or silent side expires nothing on the other, and a full one, which is paused,
is emptied by the other as it goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from operator import itemgetter

import msgspec
from aiokafka import TopicPartition

from ..models.pipeline import Pipeline
from ..models.profile import MAX_SLICES, SAMPLE
from ..models.sketch import moments, sketch
from ..models.slices import slices_of
from ..topics.log import MAX_RECORD_BYTES, Out, Record, record_bytes
from ..topics.messages import (
    UNREADABLE,
    BadRecord,
    Envelope,
    ErrorCode,
    Example,
    LabelValue,
    Slice,
    Vitals,
)
from ..topics.store import ORIGIN, ORIGIN_ROOM, Inspector, Progress, place
from ..topics.telemetry import Fate
from .agent import Agent, Entry, Runtime, Table
from .line import SETTLED, Line
from .pending import Packing, Pending, kept_of, named, place_of, time_of
from .work import Tracked, check_store, dead_letter, resume, unreadable

WAITING, LABEL, GONE = b"p/", b"o/", b"g/"  # prefixes of the store's keys
# Outcomes held per prediction held, waiting ones and joined ones each: they are a tenth of the size.
OUTCOMES_PER_PREDICTION = 5
EXAMPLE_ROOM = record_bytes(None, None, ORIGIN_ROOM)  # of an example's record, beside key and value


class Label(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What came true for a key, when it was appended (ms), and whether an example carries it."""

    value: LabelValue
    at: int
    joined: bool


_label = msgspec.json.Decoder(Label)
_encode = msgspec.json.Encoder().encode
_example = msgspec.json.Decoder(Example).decode


class Matcher:
    """The join of one partition, as a pure fold over its two inputs.

    A prediction joins the outcome of its key: the first one, or the last correction that came
    before any example was made of it. Feed records in any interleaving; times are append times, and
    one below an earlier one of its side counts as that: brokers' clocks differ, order does not.

    A joined outcome has done its work. It is kept, as long as there is room, to know a repeat or a
    correction of it, and for a later prediction of its key; it never holds up what still has to join.
    """

    def __init__(self, within: timedelta, limit: int) -> None:
        self._within = int(within / timedelta(milliseconds=1))
        self._limit = limit
        self._pending = Pending(limit)
        self._labels: dict[bytes, bytes] = {}  # as the store holds them
        self._left: dict[bytes, int] = {}  # append time of a prediction that left without its outcome
        # What may expire. Who has left an earlier way stays in line until its turn, or a sweep.
        self._early: Line[bytes] = Line([])  # keys of outcomes that wait
        self._met: Line[bytes] = Line([])  # of outcomes that joined, in that order
        self._gone: Line[bytes] = Line([])
        self._dirty: dict[bytes, bytes | None] = {}  # in the order of the changes: `restore` relies on it
        self._predicted_ms = self._came_true_ms = 0  # greatest append time of each side
        self._look = True  # something may be over that is not, by a clock that stands still
        self.early = 0
        self.fates: Counter[Fate] = Counter()
        self.missing = 0  # predictions whose outcome never came

    @property
    def waiting(self) -> int:
        return len(self._pending)

    @property
    def clock(self) -> dict[str, int]:
        return {"predictions": self._predicted_ms, "outcomes": self._came_true_ms}

    def open_sides(self) -> set[str]:
        """The sides that may be read on: a full one waits for the other, and drops nothing."""
        room = {"predictions": self.waiting < self._limit}
        room["outcomes"] = self.early < self._limit * OUTCOMES_PER_PREDICTION
        return {side for side, open_ in room.items() if open_}

    def predict(self, key: bytes, kept: bytes, at: int, offset: int, record: bytes) -> Label | None:
        """A prediction arrives: its label if that came first, else None and it waits.

        `record` is what the store holds of it, `kept` what comes back with its outcome.
        """
        if at > self._predicted_ms or self._look:
            self._predicted_ms = max(at, self._predicted_ms)
            self._expire()
        known = self._labels.get(key)
        if known is None:
            where = self._pending.add(key, kept, self._predicted_ms, offset)
            self._dirty[WAITING + where] = record
            return None
        label = _label.decode(known)
        if not label.joined:
            self.fates[Fate.JOINED] += 1
            self.early -= 1
            self._set_label(key, label.value, label.at, joined=True)
            self._remember(key, label.at)
            if self._early.count > 2 * self.early + SETTLED:
                self._early.sweep(self._waits)
        return label

    def come_true(self, key: bytes, value: LabelValue, at: int) -> list[tuple[int, bytes]]:
        """An outcome arrives: (append time, what was kept) of the predictions that waited for it, in their order."""
        if at > self._came_true_ms or self._look:
            self._came_true_ms = max(at, self._came_true_ms)
            self._expire()
        known = self._labels.get(key)
        if known is not None:
            self._again(key, _label.decode(known), value)
            return []
        met = self._pending.take(key)
        if not met and key in self._left:
            self.fates[Fate.LATE] += 1
            return []
        self._set_label(key, value, self._came_true_ms, joined=bool(met))
        if not met:
            self.fates[Fate.EARLY] += 1
            self._early.push(self._came_true_ms, key)
            self.early += 1
            return []
        self.fates[Fate.JOINED] += 1
        self._remember(key, self._came_true_ms)
        found = []
        for entry in met:
            self._dirty[WAITING + place_of(entry)] = None
            found.append((time_of(entry), kept_of(entry, key)))
        return found

    def _again(self, key: bytes, label: Label, value: LabelValue) -> None:
        if value == label.value:
            self.fates[Fate.DUPLICATE] += 1
            return
        self.fates[Fate.CORRECTED] += 1
        if not label.joined:
            self._set_label(key, value, label.at, joined=False)

    def _set_label(self, key: bytes, value: LabelValue, at: int, *, joined: bool) -> None:
        self._labels[key] = label = _encode((value, at, joined))  # a Label
        name = LABEL + key
        self._dirty.pop(name, None)
        self._dirty[name] = label

    def _remember(self, key: bytes, at: int) -> None:
        self._met.push(at, key)
        if self._met.count > self._limit * OUTCOMES_PER_PREDICTION:
            self._drop_label(*self._met.pop(), joined=True)
            self._look = True

    def _change(self, key: bytes, value: bytes | None) -> None:
        self._dirty.pop(key, None)
        self._dirty[key] = value

    def _expire(self) -> None:
        """Lets go of what the other side has passed: one that lags, or is paused, loses nothing."""
        unmet = self._came_true_ms - self._within
        while self._pending.line.first < unmet:
            self._give_up()
        unasked = self._predicted_ms - self._within
        while self._early.first < unasked:
            self._drop_label(*self._early.pop(), joined=False)
        while self._met.first < unasked:
            self._drop_label(*self._met.pop(), joined=True)
        while self._gone.first < unmet - self._within:
            at, key = self._gone.pop()
            if self._left.get(key) == at:
                del self._left[key]
                self._change(GONE + key, None)
        # So far behind the other, a side's next is over as it comes.
        self._look = self._predicted_ms < unmet or self._came_true_ms < unasked

    def _give_up(self) -> None:
        at = self._pending.line.first
        for where, key in self._pending.give_up():
            self.missing += 1
            self._left[key] = at
            self._gone.push(at, key)
            self._change(WAITING + where, None)
            self._change(GONE + key, b"%d" % at)

    def _drop_label(self, at: int, key: bytes, *, joined: bool) -> None:
        if not self._labelled(at, key, joined=joined):
            return  # joined meanwhile, or gone
        if not joined:
            self.fates[Fate.EXPIRED] += 1
            self.early -= 1
        del self._labels[key]
        self._change(LABEL + key, None)

    def _labelled(self, at: int, key: bytes, *, joined: bool) -> bool:
        known = self._labels.get(key)
        if known is None:
            return False
        label = _label.decode(known)
        return (label.at, label.joined) == (at, joined)

    def _waits(self, at: int, key: bytes) -> bool:
        return self._labelled(at, key, joined=False)

    def changes(self) -> list[Entry]:
        """The entries of the store that changed since the last call, in the order of the changes."""
        changed, self._dirty = list(self._dirty.items()), {}
        return changed

    def restore(self, table: Table, clock: Mapping[str, int]) -> None:
        """Takes up a store, its entries in the order in which they were written last.

        Of a prediction that waits it holds what is `named`. What is taken up is taken out.
        """
        self._predicted_ms, self._came_true_ms = clock.get("predictions", 0), clock.get("outcomes", 0)
        early: list[tuple[int, bytes]] = []
        for name in list(table):
            value, key = table.pop(name), name[len(LABEL) :]
            if name.startswith(WAITING):
                self._pending.restore(name[len(WAITING) :], value)
            elif name.startswith(LABEL):
                label = _label.decode(value)
                self._labels[key] = value
                if label.joined:
                    self._met.push(label.at, key)
                else:
                    early.append((label.at, key))
            elif name.startswith(GONE):
                self._left[key] = int(value)
                self._gone.push(int(value), key)
        # A correction is written anew and keeps its place: by time, which is the order they came in.
        for at, key in sorted(early, key=itemgetter(0)):
            self._early.push(at, key)
        self.early = len(early)


CLOCK_KEY = b"clock"


class JoinWork(Tracked):
    """Partition p of `predictions` and of `outcomes`."""

    def __init__(
        self, agent: Join, partition: int, progress: Progress, matcher: Matcher, *, fresh: bool
    ) -> None:
        super().__init__(progress, agent.pipeline.revision, agent.runtime.limits, fresh=fresh)
        self._agent = agent
        self._pipeline: Pipeline = agent.pipeline
        self._partition = partition
        self._matcher = matcher
        self._predictions = TopicPartition(self._pipeline.topic("predictions"), partition)
        self._outcomes = TopicPartition(self._pipeline.topic("outcomes"), partition)
        self._examples_topic = self._pipeline.topic("examples")
        self._packing = agent.packing
        self._outcome = msgspec.json.Decoder(Envelope[self._pipeline.outcomes])  # type: ignore[name-defined]
        self._examples = 0
        self._predicted_count = 0
        self._sampled: list[bytes] = []  # some of the examples made since the last vitals
        self._delays: list[float] = []  # seconds from a prediction to its outcome, of as many
        self._since_ms = agent.runtime.now_ms()

    def wanted(self) -> Collection[TopicPartition]:
        open_sides = self._matcher.open_sides()
        sides = {"predictions": self._predictions, "outcomes": self._outcomes}
        for side, tp in sides.items():
            self._agent.pause(tp, paused=side not in open_sides)
        return [tp for side, tp in sides.items() if side in open_sides]

    def lost(self) -> None:
        self._agent.runtime.telemetry.forget_pending(self._partition)
        for tp in self.positions:
            self._agent.pause(tp, paused=False)

    async def step(self, tp: TopicPartition, records: Sequence[Record]) -> list[Out]:
        outs: list[Out] = []
        source = f"{place(tp)}/".encode()
        made = self._predicted if tp == self._predictions else self._came_true
        for record in records:
            try:
                examples = made(record, record.value or b"")
            except UNREADABLE as error:
                outs.append(unreadable(self._agent.runtime, "join", record, error))
                continue
            for n, example in enumerate(examples):
                outs.append(self._out(record, b"%b%d/%d" % (source, record.offset, n), example))
        return outs

    def _predicted(self, record: Record, value: bytes) -> Sequence[Example]:
        served = self._packing.decode(value)
        self._predicted_count += 1
        kept = self._packing.pack(served, value)
        key = served.key.encode()
        label = self._matcher.predict(key, kept, record.timestamp, record.offset, value)
        return () if label is None else (served.example(label.value),)

    def _came_true(self, record: Record, value: bytes) -> Sequence[Example]:
        outcome = self._outcome.decode(value)
        label = self._pipeline.label_of(outcome.data)
        met = self._matcher.come_true(outcome.key.encode(), label, record.timestamp)
        if len(self._delays) < SAMPLE:
            self._delays += [(record.timestamp - at) / 1000 for at, _ in met]
        return [self._packing.example(outcome.key, kept, label) for _, kept in met]

    def _out(self, record: Record, origin: bytes, example: Example) -> Out:
        key, value = example.key.encode(), _encode(example)
        if EXAMPLE_ROOM + len(key) + len(value) > MAX_RECORD_BYTES:
            bad = BadRecord(
                ErrorCode.TOO_LARGE, f"{len(value)} bytes as an example; {MAX_RECORD_BYTES} are the limit"
            )
            self._agent.runtime.telemetry.dead("join", bad.code)
            return dead_letter(self._pipeline, record, bad)
        self._examples += 1
        if len(self._sampled) < SAMPLE:
            self._sampled.append(value)
        return tuple.__new__(Out, (self._examples_topic, self._partition, key, value, ((ORIGIN, origin),)))

    def changes(self) -> list[Entry]:
        clock = _encode(self._matcher.clock)
        return [*self._matcher.changes(), (CLOCK_KEY, clock)]

    def vitals(self) -> list[Vitals]:
        matcher, telemetry = self._matcher, self._agent.runtime.telemetry
        counts = {fate.value: n for fate, n in matcher.fates.items()}
        counts |= {"examples": self._examples, "missing": matcher.missing, "pending": matcher.waiting}
        counts["predictions"], self._predicted_count = self._predicted_count, 0
        for fate, n in matcher.fates.items():
            telemetry.outcomes(fate, n)
        telemetry.joined(self._examples)
        telemetry.pending(self._partition, matcher.waiting)
        since, self._since_ms = self._since_ms, self._agent.runtime.now_ms()
        sampled, self._sampled = [_example(value) for value in self._sampled], []
        delays, self._delays = self._delays, []
        slices = Counter(n for e in sampled for n in slices_of(self._pipeline.slices, e.features))
        weight = self._examples / max(1, len(sampled))
        self._examples, matcher.missing = 0, 0
        matcher.fates.clear()
        return [
            Vitals(
                agent="join",
                replica=self._agent.runtime.replica,
                model="",
                from_ms=since,
                to_ms=self._since_ms,
                counts=counts,
                sketch=sketch([e.label for e in sampled]),
                slices={n: Slice(labelled=round(c * weight)) for n, c in slices.most_common(MAX_SLICES)},
                delays=moments(delays),
            )
        ]


class Join(Agent):
    name = "join"
    linger_ms = 50  # each step of a partition is a transaction; nobody waits for an example

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._paused: set[TopicPartition] = set()
        self.packing = Packing()

    def held(self, key: bytes, value: bytes) -> bytes:
        """A prediction's record is three times as large as what is kept of it."""
        if not key.startswith(WAITING):
            return value
        served = self.packing.decode(value)
        return named(served.key.encode(), self.packing.pack(served, value))

    def pause(self, tp: TopicPartition, *, paused: bool) -> None:
        """Notes which partitions wait for their other side."""
        if paused is (tp in self._paused):
            return
        self._paused ^= {tp}
        count = sum(other.topic == tp.topic for other in self._paused)
        self.runtime.telemetry.paused(self.name, tp.topic, count)
        if paused:
            self.log.warning(
                "full: waiting for the other side; raise max_pending if this lasts", partition=str(tp)
            )

    @property
    def transactional_outputs(self) -> bool:
        """Which example an outcome makes depends on both inputs: no single cause could name it."""
        return True

    @property
    def group_topics(self) -> list[str]:
        return [self.pipeline.topic("predictions"), self.pipeline.topic("outcomes")]

    async def open(self, partition: int, table: Table, inspector: Inspector) -> JoinWork:
        inputs = [TopicPartition(topic, partition) for topic in self.group_topics]
        filtered = frozenset(self.group_topics)
        outputs = [TopicPartition(self.pipeline.topic("examples"), partition)]
        await check_store(self, partition, table, inputs, outputs, inspector)
        progress, fresh = await resume(self.pipeline, table, inputs, filtered, inspector)
        matcher = Matcher(self.pipeline.label.within, self.pipeline.max_pending)
        clock = table.get(CLOCK_KEY)
        matcher.restore(table, msgspec.json.decode(clock, type=dict[str, int]) if clock else {})
        return JoinWork(self, partition, progress, matcher, fresh=fresh)
