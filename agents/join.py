"""join: predictions meet their outcomes and become examples.

Either may come first, so both wait, each for the declared time, measured by the append times of the
*other's* topic: a lagging or silent side expires nothing on the other, and a full one, which is paused,
is emptied by the other as it goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import msgspec
from aiokafka import TopicPartition

from ..models.pipeline import Pipeline
from ..topics.log import MAX_RECORD_BYTES, Out, Record, record_bytes
from ..topics.messages import (
    BadRecord,
    Envelope,
    ErrorCode,
    Example,
    LabelValue,
    Origin,
    Prediction,
    Vitals,
)
from ..topics.store import ORIGIN, Inspector, Progress, origin_header
from ..topics.telemetry import Fate
from .agent import Agent, Entry, Runtime, Table
from .work import Tracked, dead_letter, resume, unreadable

WAITING, LABEL, GONE = b"p/", b"o/", b"g/"  # prefixes of the store's keys
# Outcomes held per prediction held, waiting ones and joined ones each: they are a tenth of the size.
OUTCOMES_PER_PREDICTION = 5


class Waiting(NamedTuple):
    """A prediction without its outcome: append time in ms, its record as served."""

    key: str
    at: int
    value: bytes

    def stored(self) -> bytes:
        """As it stands in the store: what is large must not grow there, or it fits no record."""
        return msgspec.json.encode((self.key, self.at)) + b"\n" + self.value

    @classmethod
    def restored(cls, entry: bytes) -> Waiting:
        head, value = entry.split(b"\n", 1)
        return cls(*msgspec.json.decode(head, type=tuple[str, int]), value)


class Label(msgspec.Struct, frozen=True):
    """What came true for a key, when it was appended (ms), and whether an example carries it."""

    value: LabelValue
    at: int
    joined: bool


@dataclass
class Slot:
    """All that is known of one join key."""

    waiting: dict[bytes, Waiting] = field(default_factory=dict)  # by the prediction's origin
    label: Label | None = None
    gone: int | None = None  # append time of a prediction that left without its outcome

    def empty(self) -> bool:
        return not self.waiting and self.label is None and self.gone is None


class Matcher:
    """The join of one partition, as a pure fold over its two inputs.

    A prediction joins the outcome of its key: the first one, or the last correction that came
    before any example was made of it. Feed records in any interleaving; times are append times.

    A joined outcome has done its work. It is kept, as long as there is room, to know a repeat or a
    correction of it, and for a later prediction of its key; it never holds up what still has to join.
    """

    def __init__(self, within: timedelta, limit: int) -> None:
        self._within = int(within / timedelta(milliseconds=1))
        self._limit = limit
        self._slots: dict[str, Slot] = {}
        self._queue: deque[tuple[int, str, bytes]] = deque()  # predictions: (append time, key, origin)
        self._early: deque[tuple[int, str]] = deque()  # outcomes that wait: (append time, key)
        self._met: deque[tuple[int, str]] = deque()  # outcomes that joined
        self._gone: deque[tuple[int, str]] = deque()
        self._dirty: dict[bytes, bytes | None] = {}
        self.waiting = 0
        self.early = 0
        self.clock = {"predictions": 0, "outcomes": 0}  # greatest append time of each side, ms
        self.fates: Counter[Fate] = Counter()
        self.missing = 0  # predictions whose outcome never came

    def open_sides(self) -> set[str]:
        """The sides that may be read on: a full one waits for the other, and drops nothing."""
        room = {"predictions": self.waiting < self._limit}
        room["outcomes"] = self.early < self._limit * OUTCOMES_PER_PREDICTION
        return {side for side, open_ in room.items() if open_}

    def predict(self, origin: bytes, prediction: Waiting) -> Label | None:
        """A prediction arrives: its label if that came first, else None and it waits."""
        self._advance("predictions", prediction.at)
        slot = self._slots.setdefault(prediction.key, Slot())
        if slot.label is not None:
            if not slot.label.joined:
                self.fates[Fate.JOINED] += 1
                self.early -= 1
                self._set_label(prediction.key, slot, slot.label.value, slot.label.at, joined=True)
            return slot.label
        slot.waiting[origin] = prediction
        self._queue.append((prediction.at, prediction.key, origin))
        self._dirty[WAITING + origin] = prediction.stored()
        self.waiting += 1
        return None

    def come_true(self, key: str, value: LabelValue, at: int) -> list[Waiting]:
        """An outcome arrives: the predictions that waited for it, in their order."""
        self._advance("outcomes", at)
        slot = self._slots.setdefault(key, Slot())
        if slot.label is not None:
            self._again(key, slot, slot.label, value)
            return []
        if slot.gone is not None and not slot.waiting:
            self.fates[Fate.LATE] += 1
            return []
        met = list(slot.waiting.values())
        self.early += not met
        self._set_label(key, slot, value, at, joined=bool(met))
        for origin in slot.waiting:
            self._dirty[WAITING + origin] = None
        slot.waiting = {}
        self.waiting -= len(met)
        self.fates[Fate.JOINED if met else Fate.EARLY] += 1
        return met

    def _again(self, key: str, slot: Slot, label: Label, value: LabelValue) -> None:
        if value == label.value:
            self.fates[Fate.DUPLICATE] += 1
            return
        self.fates[Fate.CORRECTED] += 1
        if not label.joined:
            self._set_label(key, slot, value, label.at, joined=False)

    def _set_label(self, key: str, slot: Slot, value: LabelValue, at: int, *, joined: bool) -> None:
        if slot.label is None or slot.label.joined is not joined:
            (self._met if joined else self._early).append((at, key))
        slot.label = Label(value, at, joined)
        self._dirty[LABEL + key.encode()] = msgspec.json.encode(slot.label)

    def _advance(self, side: str, at: int) -> None:
        self.clock[side] = max(self.clock[side], at)
        self._expire()

    def _expire(self) -> None:
        """Lets go of what the other side has passed: one that lags, or is paused, loses nothing."""
        unmet = self.clock["outcomes"] - self._within
        while self._queue and self._queue[0][0] < unmet:
            at, key, origin = self._queue.popleft()
            self._give_up(at, key, origin)
        unasked = self.clock["predictions"] - self._within
        while self._early and self._early[0][0] < unasked:
            self._drop_label(*self._early.popleft(), joined=False)
        room = self._limit * OUTCOMES_PER_PREDICTION
        while self._met and (self._met[0][0] < unasked or len(self._met) > room):
            self._drop_label(*self._met.popleft(), joined=True)
        while self._gone and self._gone[0][0] < unmet - self._within:
            at, key = self._gone.popleft()
            slot = self._slots.get(key)
            if slot is not None and slot.gone == at:
                slot.gone = None
                self._dirty[GONE + key.encode()] = None
                self._forget(key)

    def _give_up(self, at: int, key: str, origin: bytes) -> None:
        slot = self._slots.get(key)
        if slot is None or slot.waiting.pop(origin, None) is None:
            return  # joined meanwhile
        self.waiting -= 1
        self.missing += 1
        slot.gone = at
        self._gone.append((at, key))
        self._dirty[WAITING + origin] = None
        self._dirty[GONE + key.encode()] = b"%d" % at

    def _drop_label(self, at: int, key: str, *, joined: bool) -> None:
        slot = self._slots.get(key)
        if slot is None or slot.label is None or (slot.label.at, slot.label.joined) != (at, joined):
            return  # joined meanwhile, or gone
        if not joined:
            self.fates[Fate.EXPIRED] += 1
            self.early -= 1
        slot.label = None
        self._dirty[LABEL + key.encode()] = None
        self._forget(key)

    def _forget(self, key: str) -> None:
        if self._slots[key].empty():
            del self._slots[key]

    def changes(self) -> list[Entry]:
        changed, self._dirty = list(self._dirty.items()), {}
        return changed

    def restore(self, table: Mapping[bytes, bytes], clock: Mapping[str, int]) -> None:
        self.clock.update(clock)
        for key, value in table.items():
            if key.startswith(WAITING):
                waiting = Waiting.restored(value)
                origin = key[len(WAITING) :]
                self._slots.setdefault(waiting.key, Slot()).waiting[origin] = waiting
                self._queue.append((waiting.at, waiting.key, origin))
            elif key.startswith(LABEL):
                label = msgspec.json.decode(value, type=Label)
                name = key[len(LABEL) :].decode()
                self._slots.setdefault(name, Slot()).label = label
                (self._met if label.joined else self._early).append((label.at, name))
            elif key.startswith(GONE):
                name = key[len(GONE) :].decode()
                self._slots.setdefault(name, Slot()).gone = int(value)
                self._gone.append((int(value), name))
        self._queue = deque(sorted(self._queue))
        self._early = deque(sorted(self._early))
        self._met = deque(sorted(self._met))
        self._gone = deque(sorted(self._gone))
        self.waiting, self.early = len(self._queue), len(self._early)


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
        self._prediction = msgspec.json.Decoder(Prediction)
        self._outcome = msgspec.json.Decoder(Envelope[self._pipeline.outcomes])  # type: ignore[name-defined]
        self._examples = 0
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
        for record in records:
            try:
                made = self._predicted(record) if tp == self._predictions else self._came_true(record)
            except msgspec.DecodeError as error:
                outs.append(unreadable(self._agent.runtime, "join", record, error))
            else:
                outs += self._outs(record, made)
        return outs

    def _predicted(self, record: Record) -> list[Example]:
        prediction = self._prediction.decode(record.value or b"")
        origin = origin_header(record) or b"%b/%d/%d/0" % (
            record.topic.encode(),
            record.partition,
            record.offset,
        )
        waiting = Waiting(prediction.key, record.timestamp, record.value or b"")
        label = self._matcher.predict(origin, waiting)
        return [] if label is None else [_example(prediction, label.value)]

    def _came_true(self, record: Record) -> list[Example]:
        outcome = self._outcome.decode(record.value or b"")
        label = self._pipeline.label_of(outcome.data)
        met = self._matcher.come_true(outcome.key, label, record.timestamp)
        return [_example(self._prediction.decode(waiting.value), label) for waiting in met]

    def _outs(self, record: Record, examples: Sequence[Example]) -> list[Out]:
        return [self._out(record, n, example) for n, example in enumerate(examples)]

    def _out(self, record: Record, n: int, example: Example) -> Out:
        key, value = example.key.encode(), msgspec.json.encode(example)
        source = f"{record.topic}/{record.partition}".encode()
        headers = ((ORIGIN, Origin(source, record.offset, n).header()),)
        size = record_bytes(key, value, headers)
        if size > MAX_RECORD_BYTES:
            bad = BadRecord(
                ErrorCode.TOO_LARGE, f"{size} bytes as an example; {MAX_RECORD_BYTES} are the limit"
            )
            self._agent.runtime.telemetry.dead("join", bad.code)
            return dead_letter(self._pipeline, record, bad)
        self._examples += 1
        return Out(self._pipeline.topic("examples"), self._partition, key, value, headers)

    def changes(self) -> list[Entry]:
        clock = msgspec.json.encode(self._matcher.clock)
        return [*self._matcher.changes(), (CLOCK_KEY, clock)]

    def vitals(self) -> list[Vitals]:
        matcher, telemetry = self._matcher, self._agent.runtime.telemetry
        counts = {fate.value: n for fate, n in matcher.fates.items()}
        counts |= {"examples": self._examples, "missing": matcher.missing, "pending": matcher.waiting}
        for fate, n in matcher.fates.items():
            telemetry.outcomes(fate, n)
        telemetry.joined(self._examples)
        telemetry.pending(self._partition, matcher.waiting)
        since, self._since_ms = self._since_ms, self._agent.runtime.now_ms()
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
            )
        ]


def _example(prediction: Prediction, label: LabelValue) -> Example:
    return Example(
        id=prediction.id,
        key=prediction.key,
        time=prediction.time,
        features=prediction.features,
        label=label,
        served=prediction.value,
        source=prediction.source,
        model=prediction.model,
        version=prediction.version,
        fingerprint=prediction.fingerprint,
        baseline=prediction.baseline,
    )


class Join(Agent):
    name = "join"

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._paused: set[TopicPartition] = set()

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
        progress, fresh = await resume(self.pipeline, table, inputs, filtered, inspector)
        matcher = Matcher(self.pipeline.label.within, self.pipeline.max_pending)
        clock = table.get(CLOCK_KEY)
        matcher.restore(table, msgspec.json.decode(clock, type=dict[str, int]) if clock else {})
        return JoinWork(self, partition, progress, matcher, fresh=fresh)
