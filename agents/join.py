"""join: predictions meet their outcomes and become examples.

Either may come first, so both wait, each for the declared time, measured by the append times of the
*other's* topic: a lagging or silent side expires nothing on the other, and a full one, which is paused,
is emptied by the other as it goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from operator import itemgetter

import msgspec
from aiokafka import TopicPartition

from ..models.pipeline import Pipeline
from ..models.profile import MAX_SLICES, SAMPLE, slices_of
from ..models.sketch import moments, sketch
from ..topics.log import MAX_RECORD_BYTES, Out, Record, record_bytes
from ..topics.messages import (
    UNREADABLE,
    BadRecord,
    Envelope,
    ErrorCode,
    Example,
    LabelValue,
    Origin,
    Prediction,
    Slice,
    Vitals,
)
from ..topics.store import ORIGIN, Inspector, Progress
from ..topics.telemetry import Fate
from .agent import Agent, Entry, Runtime, Table
from .work import Tracked, check_store, dead_letter, resume, unreadable

WAITING, LABEL, GONE = b"p/", b"o/", b"g/"  # prefixes of the store's keys
# Outcomes held per prediction held, waiting ones and joined ones each: they are a tenth of the size.
OUTCOMES_PER_PREDICTION = 5
SETTLED = 1_000  # entries of a queue that need no sweep, whatever their share; 0.1 MB


class Waiting(msgspec.Struct, gc=False):
    """A prediction without its outcome: append time in ms, its record as served, its key in the store.

    A million of them may wait: nothing of them is held twice, and the collector of cycles passes them by.
    The store's value is the record itself: what is large must not grow there, or it fits no record.
    """

    key: str
    at: int
    value: bytes
    place: bytes = b""
    waits: bool = False

    @classmethod
    def restored(cls, place: bytes, value: bytes) -> Waiting:
        at, _ = place[len(WAITING) :].split(b"/", 1)
        return cls(_keyed.decode(value).key, int(at), value, place)


class Keyed(msgspec.Struct):
    """What of a prediction's record tells where it belongs."""

    key: str


_keyed = msgspec.json.Decoder(Keyed)


class Label(msgspec.Struct, frozen=True, gc=False):
    """What came true for a key, when it was appended (ms), and whether an example carries it."""

    value: LabelValue
    at: int
    joined: bool


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
        self._waiting: dict[str, Waiting] = {}  # the first of each key
        self._more: dict[str, deque[Waiting]] = {}  # further ones of a key, which is rare
        self._labels: dict[str, Label] = {}
        self._left: dict[str, int] = {}  # append time of a prediction that left without its outcome
        # What may expire, oldest first. An entry that is settled stays until its turn, or a sweep.
        self._queue: deque[Waiting] = deque()
        self._early: deque[tuple[int, str]] = deque()  # outcomes that wait: (append time, key)
        self._met: deque[tuple[int, str]] = deque()  # outcomes that joined, in that order
        self._gone: deque[tuple[int, str]] = deque()
        self._dirty: dict[bytes, bytes | None] = {}  # in the order of the changes: `restore` relies on it
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
        label = self._labels.get(prediction.key)
        if label is not None:
            if not label.joined:
                self.fates[Fate.JOINED] += 1
                self.early -= 1
                self._set_label(prediction.key, label.value, label.at, joined=True)
                self._sweep()
            return label
        prediction.at = self.clock["predictions"]
        prediction.place = WAITING + b"%d/%b" % (prediction.at, origin)
        self._wait(prediction)
        self._change(prediction.place, prediction.value)
        return None

    def _wait(self, prediction: Waiting) -> None:
        if self._waiting.setdefault(prediction.key, prediction) is not prediction:
            self._more.setdefault(prediction.key, deque()).append(prediction)
        self._queue.append(prediction)
        prediction.waits = True
        self.waiting += 1

    def come_true(self, key: str, value: LabelValue, at: int) -> list[Waiting]:
        """An outcome arrives: the predictions that waited for it, in their order."""
        self._advance("outcomes", at)
        label = self._labels.get(key)
        if label is not None:
            self._again(key, label, value)
            return []
        first = self._waiting.pop(key, None)
        if first is None and key in self._left:
            self.fates[Fate.LATE] += 1
            return []
        met = [] if first is None else [first, *self._more.pop(key, ())]
        self.early += not met
        self._set_label(key, value, self.clock["outcomes"], joined=bool(met))
        for prediction in met:
            prediction.waits = False
            self._change(prediction.place, None)
        self.waiting -= len(met)
        self.fates[Fate.JOINED if met else Fate.EARLY] += 1
        self._sweep()
        return met

    def _again(self, key: str, label: Label, value: LabelValue) -> None:
        if value == label.value:
            self.fates[Fate.DUPLICATE] += 1
            return
        self.fates[Fate.CORRECTED] += 1
        if not label.joined:
            self._set_label(key, value, label.at, joined=False)

    def _set_label(self, key: str, value: LabelValue, at: int, *, joined: bool) -> None:
        known = self._labels.get(key)
        if known is None or known.joined is not joined:
            (self._met if joined else self._early).append((at, key))
        self._labels[key] = label = Label(value, at, joined)
        self._change(LABEL + key.encode(), msgspec.json.encode(label))

    def _change(self, key: bytes, value: bytes | None) -> None:
        self._dirty.pop(key, None)
        self._dirty[key] = value

    def _advance(self, side: str, at: int) -> None:
        self.clock[side] = max(self.clock[side], at)
        self._expire()

    def _expire(self) -> None:
        """Lets go of what the other side has passed: one that lags, or is paused, loses nothing."""
        unmet = self.clock["outcomes"] - self._within
        while self._queue and self._queue[0].at < unmet:
            self._give_up(self._queue.popleft())
        unasked = self.clock["predictions"] - self._within
        while self._early and self._early[0][0] < unasked:
            self._drop_label(*self._early.popleft(), joined=False)
        room = self._limit * OUTCOMES_PER_PREDICTION
        while self._met and (self._met[0][0] < unasked or len(self._met) > room):
            self._drop_label(*self._met.popleft(), joined=True)
        while self._gone and self._gone[0][0] < unmet - self._within:
            at, key = self._gone.popleft()
            if self._left.get(key) == at:
                del self._left[key]
                self._change(GONE + key.encode(), None)

    def _give_up(self, prediction: Waiting) -> None:
        if not prediction.waits:
            return  # joined meanwhile
        key, at = prediction.key, prediction.at
        more = self._more.get(key)
        if more is None:
            del self._waiting[key]
        else:  # the oldest leaves first
            self._waiting[key] = more.popleft()
            if not more:
                del self._more[key]
        prediction.waits = False
        self.waiting -= 1
        self.missing += 1
        self._left[key] = at
        self._gone.append((at, key))
        self._change(prediction.place, None)
        self._change(GONE + key.encode(), b"%d" % at)

    def _drop_label(self, at: int, key: str, *, joined: bool) -> None:
        if not self._labelled(at, key, joined=joined):
            return  # joined meanwhile, or gone
        if not joined:
            self.fates[Fate.EXPIRED] += 1
            self.early -= 1
        del self._labels[key]
        self._change(LABEL + key.encode(), None)

    def _labelled(self, at: int, key: str, *, joined: bool) -> bool:
        label = self._labels.get(key)
        return label is not None and (label.at, label.joined) == (at, joined)

    def _sweep(self) -> None:
        """Drops settled entries before they are more than a quarter: what has joined must not take room."""
        if len(self._queue) > self.waiting * 5 // 4 + SETTLED:
            self._queue = deque(prediction for prediction in self._queue if prediction.waits)
        if len(self._early) > self.early * 5 // 4 + SETTLED:
            self._early = deque(entry for entry in self._early if self._labelled(*entry, joined=False))

    def changes(self) -> list[Entry]:
        """The entries of the store that changed since the last call, in the order of the changes."""
        changed, self._dirty = list(self._dirty.items()), {}
        return changed

    def restore(self, table: Mapping[bytes, bytes], clock: Mapping[str, int]) -> None:
        """Takes up a store, its entries in the order in which they were written last."""
        self.clock.update(clock)
        for key, value in table.items():
            if key.startswith(WAITING):
                self._wait(Waiting.restored(key, value))
            elif key.startswith(LABEL):
                label = msgspec.json.decode(value, type=Label)
                name = key[len(LABEL) :].decode()
                self._labels[name] = label
                (self._met if label.joined else self._early).append((label.at, name))
            elif key.startswith(GONE):
                name, at = key[len(GONE) :].decode(), int(value)
                self._left[name] = at
                self._gone.append((at, name))
        # A correction is written anew and keeps its place: by time, which is the order they came in.
        self._early = deque(sorted(self._early, key=itemgetter(0)))
        self.early = len(self._early)


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
        self._predicted_count = 0
        self._sampled: list[Example] = []  # some of those made since the last vitals
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
        for record in records:
            try:
                made = self._predicted(record) if tp == self._predictions else self._came_true(record)
            except UNREADABLE as error:
                outs.append(unreadable(self._agent.runtime, "join", record, error))
            else:
                outs += self._outs(record, made)
        return outs

    def _predicted(self, record: Record) -> list[Example]:
        prediction = self._prediction.decode(record.value or b"")
        self._predicted_count += 1
        waiting = Waiting(prediction.key, record.timestamp, record.value or b"")
        label = self._matcher.predict(b"%d" % record.offset, waiting)
        return [] if label is None else [_example(prediction, label.value)]

    def _came_true(self, record: Record) -> list[Example]:
        outcome = self._outcome.decode(record.value or b"")
        label = self._pipeline.label_of(outcome.data)
        met = self._matcher.come_true(outcome.key, label, record.timestamp)
        if len(self._delays) < SAMPLE:
            self._delays += [(record.timestamp - waiting.at) / 1000 for waiting in met]
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
        if len(self._sampled) < SAMPLE:
            self._sampled.append(example)
        return Out(self._pipeline.topic("examples"), self._partition, key, value, headers)

    def changes(self) -> list[Entry]:
        clock = msgspec.json.encode(self._matcher.clock)
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
        sampled, self._sampled = self._sampled, []
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
        outputs = [TopicPartition(self.pipeline.topic("examples"), partition)]
        await check_store(self, partition, table, inputs, outputs, inspector)
        progress, fresh = await resume(self.pipeline, table, inputs, filtered, inspector)
        matcher = Matcher(self.pipeline.label.within, self.pipeline.max_pending)
        clock = table.get(CLOCK_KEY)
        matcher.restore(table, msgspec.json.decode(clock, type=dict[str, int]) if clock else {})
        return JoinWork(self, partition, progress, matcher, fresh=fresh)
