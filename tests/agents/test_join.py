"""Every prediction whose outcome comes in time becomes one example, in whatever order they are read."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import msgspec
import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper.agents.join import OUTCOMES_PER_PREDICTION, Join, JoinWork, Matcher
from riverkeeper.agents.line import SETTLED
from riverkeeper.agents.pending import named
from riverkeeper.topics.log import MAX_RECORD_BYTES, record_bytes
from riverkeeper.topics.messages import Envelope, ErrorCode, Example, Origin, Prediction, Source
from riverkeeper.topics.store import ORIGIN, Progress, fold, latest
from riverkeeper.topics.telemetry import Fate
from tests.agents.tiny import Paid, Stored, runtime, tiny

WITHIN = timedelta(milliseconds=100)
PLENTY = 1_000


def matcher(limit: int = PLENTY) -> Matcher:
    return Matcher(WITHIN, limit)


def restored(from_: Matcher, table: dict[bytes, bytes], limit: int = PLENTY) -> Matcher:
    again = matcher(limit)
    again.restore({name: held(name, value) for name, value in table.items()}, from_.clock)
    return again


def held(name: bytes, value: bytes) -> bytes:
    if not name.startswith(b"p/"):
        return value
    return named(msgspec.json.decode(value)["key"].encode(), value)


@dataclass
class Asked:
    origin: bytes
    key: str
    at: int


@dataclass
class CameTrue:
    key: str
    value: float
    at: int


Made = tuple[bytes, float]  # the origin of the prediction, the label
offsets = count()  # of predictions, whichever matcher they are fed to


def feed(m: Matcher, record: Asked | CameTrue) -> list[Made]:
    if isinstance(record, Asked):
        value = msgspec.json.encode({"key": record.key, "of": record.origin.decode()})
        label = m.predict(record.key.encode(), value, record.at, next(offsets), value)
        return [] if label is None else [(record.origin, float(label.value))]
    met = m.come_true(record.key.encode(), record.value, record.at)
    return [(msgspec.json.decode(kept)["of"].encode(), record.value) for _, kept in met]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Asked], list[CameTrue], list[Asked | CameTrue]]:
    """Predictions with keys of their own, outcomes for some of them, and an interleaving of both."""
    count = draw(st.integers(1, 12))
    steps = st.lists(st.integers(0, 60), min_size=count, max_size=count)
    at, predictions = 0, []
    for i, step in enumerate(draw(steps)):
        at += step
        predictions.append(Asked(b"facts/0/%d/0" % i, f"k{i}", at))
    at, outcomes = 0, []
    for key in draw(st.lists(st.integers(0, count), max_size=20)):  # one key has no prediction
        at += draw(st.integers(0, 60))
        outcomes.append(CameTrue(f"k{key}", float(draw(st.integers(0, 2))), at))
    order: list[Asked | CameTrue] = []
    left: tuple[list[Asked], list[CameTrue]] = (list(predictions), list(outcomes))
    for side in draw(st.lists(st.integers(0, 1), min_size=32, max_size=32)):
        if left[side]:
            order.append(left[side].pop(0))
    return predictions, outcomes, [*order, *left[0], *left[1]]


History = tuple[list[Asked], list[CameTrue], list[Asked | CameTrue]]


@given(histories())
def test_one_example_for_each_prediction_whose_outcome_came_in_time(history: History) -> None:
    predictions, outcomes, order = history
    m = matcher()
    made = [example for record in order for example in feed(m, record)]
    counts = Counter(origin for origin, _ in made)
    assert set(counts.values()) <= {1}
    for p in predictions:
        said = [o for o in outcomes if o.key == p.key]
        if said and abs(said[0].at - p.at) <= 100:  # a repetition does not prolong an outcome's time
            assert counts[p.origin] == 1
        labels = [label for origin, label in made if origin == p.origin]
        assert set(labels) <= {o.value for o in said}
    assert sum(m.fates.values()) >= len(outcomes)


@st.composite
def jumbled(draw: st.DrawFn) -> History:
    """The same, with times that go back now and then, as they do when a leader's clock is behind the last's."""
    predictions, outcomes, order = draw(histories())
    for record in order:
        record.at = max(0, record.at - draw(st.sampled_from([0, 0, 0, 1, 40])))
    return predictions, outcomes, order


@given(jumbled(), st.lists(st.booleans(), min_size=40, max_size=40), st.sampled_from([1, 2, PLENTY]))
def test_restored_anywhere_it_goes_on_the_same(history: History, cuts: list[bool], limit: int) -> None:
    _, _, order = history
    stays, falls, table = matcher(limit), matcher(limit), dict[bytes, bytes]()
    told: Counter[Fate] = Counter()
    for record, cut in zip(order, cuts, strict=False):
        assert feed(falls, record) == feed(stays, record)
        if cut:
            fold(table, [Stored(0, value, key) for key, value in falls.changes()])
            told += falls.fates
            falls = restored(falls, table, limit)
        assert (falls.waiting, falls.early, falls.clock) == (stays.waiting, stays.early, stays.clock)
        assert told + falls.fates == stays.fates


@given(histories())
def test_a_store_that_was_passed_by_holds_nothing(history: History) -> None:
    m = matcher()
    for record in history[2]:
        feed(m, record)
    for at in (10_000, 20_000):  # what is given up is remembered a while, to tell late from early
        m.come_true(b"%d later" % at, 0.0, at)
        m.predict(b"%d later" % at, b"", at, next(offsets), b"")
    table = latest(Stored(0, value, key) for key, value in m.changes())
    assert [key for key in table if not key.endswith(b"later")] == []


class TestFates:
    def test_the_outcome_follows(self) -> None:
        m = matcher()
        assert feed(m, Asked(b"p", "k", 0)) == []
        assert feed(m, CameTrue("k", 5.0, 100)) == [(b"p", 5.0)]
        assert m.fates == {Fate.JOINED: 1}

    def test_the_outcome_comes_first(self) -> None:
        m = matcher()
        feed(m, CameTrue("k", 5.0, 0))
        assert feed(m, Asked(b"p", "k", 100)) == [(b"p", 5.0)]
        assert m.fates == {Fate.EARLY: 1, Fate.JOINED: 1}

    def test_the_outcome_comes_too_late(self) -> None:
        m = matcher()
        feed(m, Asked(b"p", "k", 0))
        feed(m, Asked(b"q", "other", 101))
        assert feed(m, CameTrue("k", 5.0, 101)) == []
        assert (m.fates, m.missing) == ({Fate.LATE: 1}, 1)

    def test_it_comes_again(self) -> None:
        m = matcher()
        feed(m, Asked(b"p", "k", 0))
        feed(m, CameTrue("k", 5.0, 1))
        assert feed(m, CameTrue("k", 5.0, 2)) == []
        assert m.fates == {Fate.JOINED: 1, Fate.DUPLICATE: 1}

    def test_a_correction_counts_until_an_example_is_made(self) -> None:
        m = matcher()
        feed(m, CameTrue("k", 5.0, 0))
        feed(m, CameTrue("k", 6.0, 1))
        assert feed(m, Asked(b"p", "k", 2)) == [(b"p", 6.0)]
        assert feed(m, CameTrue("k", 7.0, 3)) == []
        assert feed(m, Asked(b"q", "k", 4)) == [(b"q", 6.0)]
        assert m.fates == {Fate.EARLY: 1, Fate.CORRECTED: 2, Fate.JOINED: 1}

    def test_one_outcome_is_for_all_predictions_of_its_key(self) -> None:
        m = matcher()
        for origin in (b"p", b"q"):
            feed(m, Asked(origin, "k", 0))
        assert feed(m, CameTrue("k", 5.0, 1)) == [(b"p", 5.0), (b"q", 5.0)]
        assert feed(m, Asked(b"r", "k", 2)) == [(b"r", 5.0)]

    def test_an_outcome_nobody_asked_about_expires(self) -> None:
        m = matcher()
        feed(m, CameTrue("k", 5.0, 0))
        feed(m, Asked(b"p", "other", 101))
        assert (m.fates[Fate.EXPIRED], m.early) == (1, 0)
        assert feed(m, Asked(b"q", "k", 102)) == []


class TestTime:
    def test_two_given_up_at_one_instant(self) -> None:
        m = matcher()
        for origin in (b"p", b"q"):
            feed(m, Asked(origin, "k", 0))
        for at in (101, 301, 501):
            feed(m, CameTrue(f"x{at}", 0.0, at))
        assert m.missing == 2


class TestFull:
    def test_a_full_side_is_not_read_on_and_loses_nothing(self) -> None:
        m = matcher(limit=3)
        for i in range(3):
            assert m.open_sides() == {"predictions", "outcomes"}
            feed(m, Asked(b"%d" % i, f"k{i}", i))
        assert m.open_sides() == {"outcomes"}
        assert feed(m, CameTrue("k0", 5.0, 5)) == [(b"0", 5.0)]
        assert m.open_sides() == {"predictions", "outcomes"}
        assert [feed(m, CameTrue(f"k{i}", 5.0, 6)) for i in (1, 2)] == [[(b"1", 5.0)], [(b"2", 5.0)]]

    def test_joined_outcomes_hold_nothing_up(self) -> None:
        m = matcher(limit=1)
        asked = [Asked(b"facts/0/%d/0" % n, f"k{n}", 0) for n in range(50)]
        came = [CameTrue(f"k{n}", 1.0, 0) for n in range(50)]
        joined = 0
        while asked or came:
            open_ = m.open_sides()
            if asked and "predictions" in open_:
                joined += len(feed(m, asked.pop(0)))
            elif came and "outcomes" in open_:
                joined += len(feed(m, came.pop(0)))
            else:
                raise AssertionError(f"nothing moves after {joined} examples")
        assert joined == 50

    def test_the_newest_joined_outcomes_are_remembered(self) -> None:
        m = matcher(limit=1)
        for n in range(10):
            feed(m, Asked(b"facts/0/%d/0" % n, f"k{n}", 0))
            feed(m, CameTrue(f"k{n}", 1.0, 0))
        feed(m, CameTrue("k9", 1.0, 0))
        assert m.fates[Fate.DUPLICATE] == 1
        assert sum(key.startswith(b"o/") and value is not None for key, value in m.changes()) <= 6

    def test_a_side_full_of_what_never_comes_opens_when_its_time_is_over(self) -> None:
        """It is paused, so that its own clock stands still: the other side's must do."""
        m = matcher(limit=3)
        for i in range(3):
            feed(m, Asked(b"%d" % i, f"k{i}", i))
        feed(m, CameTrue("x", 0.0, 103))
        assert m.open_sides() == {"predictions", "outcomes"}
        assert m.missing == 3

        m = matcher(limit=1)
        for i in range(OUTCOMES_PER_PREDICTION):
            feed(m, CameTrue(f"k{i}", 5.0, i))
        feed(m, Asked(b"p", "x", 500))
        assert "outcomes" in m.open_sides()


class TestRestored:
    """Whom a full memory forgets, and when, is the same after a restart; what is taken up is held once."""

    def test_the_table_is_emptied(self) -> None:
        m, table = matcher(), dict[bytes, bytes]()
        feed(m, Asked(b"p", "k", 0))
        feed(m, CameTrue("early", 1.0, 0))
        fold(table, [Stored(0, value, key) for key, value in m.changes()], held)
        again = matcher()
        again.restore(table, m.clock)
        assert (table, again.waiting, again.early) == ({}, 1, 1)

    def test_outcomes_are_remembered_in_the_order_in_which_they_joined(self) -> None:
        m, room = matcher(limit=1), OUTCOMES_PER_PREDICTION
        feed(m, CameTrue("early", 1.0, 0))
        for n in range(room - 1):
            feed(m, Asked(b"%d" % n, f"k{n}", 0))
            feed(m, CameTrue(f"k{n}", 1.0, 0))
        feed(m, Asked(b"early", "early", 0))
        again = restored(m, latest(Stored(0, value, key) for key, value in m.changes()), limit=1)
        for it in (m, again):
            for n in range(room - 1):  # all but the one that joined last are forgotten
                feed(it, Asked(b"x%d" % n, f"x{n}", 0))
                feed(it, CameTrue(f"x{n}", 1.0, 0))
            feed(it, CameTrue("x", 1.0, 0))
            assert feed(it, Asked(b"again", "early", 0)) == [(b"again", 1.0)]

    def test_a_time_that_goes_back_does_not_overtake(self) -> None:
        m = matcher()
        feed(m, CameTrue("a", 1.0, 100))
        feed(m, CameTrue("b", 1.0, 50))
        again = restored(m, latest(Stored(0, value, key) for key, value in m.changes()))
        for it in (m, again):
            feed(it, Asked(b"x", "x", 170))
            assert it.early == 2
            assert feed(it, Asked(b"b", "b", 170)) == [(b"b", 1.0)]


class TestMemory:
    """What has joined takes no room until its time is over: `within` may be a day, and hold a hundred million."""

    def test_joined_predictions_leave_the_queue(self) -> None:
        m = matcher()
        for n in range(20_000):
            feed(m, Asked(b"%d" % n, f"k{n}", 0))
            feed(m, CameTrue(f"k{n}", 1.0, 0))
        assert m._pending.line.count <= 2 * SETTLED

    def test_joined_outcomes_leave_theirs(self) -> None:
        m = matcher()
        for n in range(20_000):
            feed(m, CameTrue(f"k{n}", 1.0, 0))
            feed(m, Asked(b"%d" % n, f"k{n}", 0))
        assert m._early.count <= 2 * SETTLED

    def test_what_waits_stays_in_its_order(self) -> None:
        m = matcher()
        for n in range(10 * SETTLED):
            feed(m, Asked(b"%d" % n, f"k{n}", n // SETTLED))
            if n % 10:
                feed(m, CameTrue(f"k{n}", 1.0, 0))
        assert (m.waiting, m.missing) == (SETTLED, 0)
        feed(m, CameTrue("x", 0.0, 105))
        assert (m.waiting, m.missing) == (SETTLED // 2, SETTLED // 2)

    def test_many_of_one_key(self) -> None:
        m = matcher()
        for n in range(30_000):
            feed(m, Asked(b"%d" % n, "k", n // 300))
        feed(m, CameTrue("x", 0.0, 150))
        assert (m.waiting, m.missing) == (15_000, 15_000)
        assert [origin for origin, _ in feed(m, CameTrue("k", 1.0, 150))] == [
            b"%d" % n for n in range(15_000, 30_000)
        ]


PIPELINE = tiny()
PREDICTIONS, OUTCOMES = TopicPartition("tiny.predictions", 0), TopicPartition("tiny.outcomes", 0)
TIME = datetime(2024, 1, 1, tzinfo=UTC)


def work(limit: int = PLENTY) -> JoinWork:
    progress = Progress({PREDICTIONS: 0, OUTCOMES: 0}, frozenset({"tiny.predictions", "tiny.outcomes"}))
    return JoinWork(Join(runtime(PIPELINE)), 0, progress, Matcher(WITHIN, limit), fresh=True)


def prediction(offset: int, key: str = "b1", note: str = "") -> Stored:
    said = Prediction(
        id=f"s{offset}",
        key=key,
        time=TIME,
        value=2.0,
        source=Source.MODEL,
        reason="",
        asked="line",
        model="line",
        version=3,
        fingerprint="f",
        fact=f"tiny.facts/0/{offset}",
        verdict=-1,
        baseline=1.0,
        features={"amount": 2.5, "note": note},
    )
    origin = ((ORIGIN, Origin(b"tiny.facts/0", offset, 0).header()),)
    return Stored(offset, msgspec.json.encode(said), topic="tiny.predictions", headers=origin)


def outcome(offset: int, key: str = "b1", amount: float = 3.5) -> Stored:
    said = Envelope(id=f"p{offset}", type="paid", time=TIME, key=key, data=Paid(basket=key, amount=amount))
    origin = ((ORIGIN, Origin(b"tiny.events/0", offset, 0).header()),)
    return Stored(offset, msgspec.json.encode(said), topic="tiny.outcomes", headers=origin)


def process(step: JoinWork, tp: TopicPartition, records: Sequence[Stored]) -> list[tuple[str, bytes]]:
    outs = asyncio.run(step.process({tp: records}))
    return [(out.topic, out.value or b"") for out in outs]


class TestJoinWork:
    def test_an_example_is_what_was_served_and_what_came_true(self) -> None:
        step = work()
        assert process(step, PREDICTIONS, [prediction(0)]) == []
        ((topic, value),) = process(step, OUTCOMES, [outcome(0)])
        assert topic == "tiny.examples"
        assert msgspec.json.decode(value, type=Example) == Example(
            id="s0",
            key="b1",
            time=TIME,
            features={"amount": 2.5, "note": ""},
            label=3.5,
            served=2.0,
            source=Source.MODEL,
            model="line",
            version=3,
            fingerprint="f",
            baseline=1.0,
        )

    @pytest.mark.parametrize(("tp", "junk"), [(PREDICTIONS, b"{}"), (OUTCOMES, b"\xff"), (OUTCOMES, None)])
    def test_what_cannot_be_read_is_a_dead_letter(self, tp: TopicPartition, junk: bytes | None) -> None:
        record = Stored(0, junk, topic=tp.topic)
        ((topic, value),) = process(work(), tp, [record])
        assert (topic, value) == ("tiny.dead", junk or b"")

    def test_the_largest_prediction_fits_the_store(self) -> None:
        room = MAX_RECORD_BYTES - record_bytes(b"b1", prediction(0).value, [(ORIGIN, b"0" * 280)])
        largest = prediction(0, note="x" * room)
        step = work()
        process(step, PREDICTIONS, [largest])
        entries = step.snapshot(0.0)
        assert all(record_bytes(key, value, ()) <= MAX_RECORD_BYTES for key, value in entries)
        again, join = matcher(), Join(runtime(PIPELINE))
        again.restore({k: join.held(k, v) for k, v in entries if v is not None}, {})
        ((_, kept),) = again.come_true(b"b1", 1.0, largest.timestamp)
        assert join.packing.example("b1", kept, 1.0).served == 2.0
        assert len(kept) > room

    def test_an_example_that_fits_no_record_is_a_dead_letter(self) -> None:
        """The broker would refuse it, again and again."""
        step = work()
        process(step, PREDICTIONS, [prediction(0, note="x" * MAX_RECORD_BYTES)])
        asked = asyncio.run(step.process({OUTCOMES: [outcome(7)]}))
        assert [(o.topic, dict(o.headers)["code"]) for o in asked] == [
            ("tiny.dead", ErrorCode.TOO_LARGE.value.encode())
        ]

    def test_a_full_side_is_left_out_of_what_is_wanted(self) -> None:
        step = work(limit=2)
        assert set(step.wanted()) == {PREDICTIONS, OUTCOMES}
        process(step, PREDICTIONS, [prediction(i, f"b{i}") for i in range(2)])
        assert set(step.wanted()) == {OUTCOMES}
