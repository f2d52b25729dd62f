"""Join loses no label to lag, to an outage, to a full table or to a clock that is wrong.

The outcome comes before a lagging prediction; join is down for 25 h and expires by the wall clock; a
full table evicts; one timestamp in 2099 advances time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from aiokafka import AIOKafkaProducer

from riverkeeper import Label
from riverkeeper.agents.join import OUTCOMES_PER_PREDICTION, Join
from tests.agents.loop import made
from tests.agents.test_join import Asked, CameTrue, feed, matcher
from tests.agents.tiny import runtime
from tests.brokers.broker import Broker
from tests.counterexamples.byhand import BY_HAND, ByHand
from tests.counterexamples.joined import examples, outcome, prediction
from tests.counterexamples.without import Remedy
from tests.topics.logs import writing

REMEDIES = [
    Remedy(
        "agents/join.py",
        "        self._set_label(key, value, self._came_true_ms, joined=bool(met))\n",
        "        if not met:\n            return []\n"
        "        self._set_label(key, value, self._came_true_ms, joined=True)\n",
        what="outcomes wait, too",
    ),
    Remedy(
        "agents/join.py",
        "        unmet = self._came_true_ms - self._within\n",
        "        unmet = self._predicted_ms - self._within\n",
        what="predictions expire by the outcomes' time",
    ),
    Remedy(
        "agents/join.py",
        "        unasked = self._predicted_ms - self._within\n",
        "        unasked = self._came_true_ms - self._within\n",
        what="outcomes expire by the predictions' time",
    ),
    Remedy(
        "agents/join.py",
        "        unmet = self._came_true_ms - self._within\n",
        '        unmet = __import__("time").time() * 1000 - self._within\n',
        what="expiry by append time, not by the wall clock",
    ),
    Remedy(
        "agents/join.py",
        '        room = {"predictions": self.waiting < self._limit}\n',
        """        while self.waiting > self._limit:
            self._give_up()
        room = {"predictions": True}
""",
        what="a full side pauses and drops nothing",
    ),
    Remedy(
        "topics/catalog.py",
        '            "message.timestamp.type": "LogAppendTime",\n',
        "",
        what="time is the broker's append time",
    ),
]
HOUR_MS = 3_600_000
MINUTES = Label("amount", within=timedelta(minutes=10))


def test_predictions_wait_for_as_long_as_outcomes_are_silent() -> None:
    m = matcher()
    feed(m, Asked(b"p", "k", 0))
    for at in range(0, 100_000, 1_000):
        feed(m, Asked(b"x%d" % at, f"x{at}", at))
    assert m.missing == 0
    assert feed(m, CameTrue("k", 5.0, 100)) == [(b"p", 5.0)]


def test_outcomes_wait_for_predictions_that_lag() -> None:
    m = matcher()
    feed(m, CameTrue("k", 5.0, 50))
    for at in range(100, 100_000, 1_000):
        feed(m, CameTrue(f"x{at}", 0.0, at))
    assert feed(m, Asked(b"p", "k", 0)) == [(b"p", 5.0)]


def test_an_outage_of_25_hours_costs_nothing() -> None:
    """It restarts at a checkpoint of yesterday, and reads what came meanwhile at once."""
    m = matcher()
    yesterday = int(time.time() * 1000) - 25 * HOUR_MS
    feed(m, Asked(b"p", "k", yesterday))
    m.changes()
    for i in range(50):
        feed(m, Asked(b"%d" % i, f"k{i}", yesterday + 1 + i))
    joined = [feed(m, CameTrue(f"k{i}", 1.0, yesterday + 60 + i // 2)) for i in range(50)]
    assert all(joined) and feed(m, CameTrue("k", 5.0, yesterday + 100)) == [(b"p", 5.0)]
    assert m.missing == 0


def test_a_full_side_is_not_read_on_and_loses_nothing() -> None:
    m = matcher(limit=3)
    asked = [Asked(b"%d" % i, f"k{i}", i) for i in range(30)]
    came = [CameTrue(f"k{i}", 5.0, 30 + i) for i in range(30)]
    joined = 0
    while asked or came:
        sides = m.open_sides()
        assert sides, f"nothing moves after {joined} examples"
        if asked and "predictions" in sides:
            joined += len(feed(m, asked.pop(0)))
        else:
            assert came and "outcomes" in sides, f"nothing moves after {joined} examples"
            joined += len(feed(m, came.pop(0)))
    assert (joined, m.missing) == (30, 0)


def test_too_many_outcomes_wait_as_well() -> None:
    m = matcher(limit=1)
    for i in range(OUTCOMES_PER_PREDICTION):
        assert "outcomes" in m.open_sides()
        feed(m, CameTrue(f"k{i}", 5.0, i))
    assert m.open_sides() == {"predictions"}
    for i in range(OUTCOMES_PER_PREDICTION):
        assert feed(m, Asked(b"%d" % i, f"k{i}", i)) == [(b"%d" % i, 5.0)]


async def test_a_producer_whose_clock_is_fast_expires_nothing(real: Broker) -> None:
    """50 minutes ahead: Kafka refuses what is more than an hour ahead, where it takes such stamps at all."""
    async with made(real, partitions=1, label=MINUTES) as pipeline:
        async with writing(real) as writer:
            await writer.write([prediction(pipeline, n) for n in range(10)])
        foreign = AIOKafkaProducer(bootstrap_servers=real.address)
        await foreign.start()
        ahead = outcome(pipeline, 0)
        await foreign.send_and_wait(
            ahead.topic,
            ahead.value,
            key=ahead.key,
            partition=0,
            headers=list(ahead.headers),
            timestamp_ms=int(time.time() * 1000) + 50 * 60_000,
        )
        await foreign.stop()
        async with ByHand(Join(runtime(pipeline, real, "a", BY_HAND))) as join, writing(real) as writer:
            await join.take_over(0)
            await join.read_to(pipeline.topic("predictions"), 10)
            await join.read_to(pipeline.topic("outcomes"), 1)  # alone in its batch: what it expires is gone
            await writer.write([outcome(pipeline, n) for n in range(1, 10)])
            await join.read_to(pipeline.topic("outcomes"), 10)
        assert sorted(e.id for e in await examples(real, pipeline)) == [f"s{n}" for n in range(10)]


async def test_a_process_that_wakes_25_hours_later_drops_nothing(real: Broker) -> None:
    """Its clocks have jumped; the log's have not."""
    async with made(real, partitions=1, label=MINUTES) as pipeline, writing(real) as writer:
        await writer.write([prediction(pipeline, n) for n in range(10)])
        async with ByHand(Join(runtime(pipeline, real, "a", BY_HAND))) as join:
            await join.take_over(0)
            await join.read_to(pipeline.topic("predictions"), 10)
            await join.checkpoint()
        await writer.write([outcome(pipeline, n) for n in range(10)])
        later = replace(
            runtime(pipeline, real, "b", BY_HAND),
            now=lambda: time.time() + 25 * 3_600,
            monotonic=lambda: time.monotonic() + 25 * 3_600,
        )
        async with ByHand(Join(later)) as join:
            await join.take_over(0)
            await join.read_to(pipeline.topic("outcomes"), 10)
        assert sorted(e.id for e in await examples(real, pipeline)) == [f"s{n}" for n in range(10)]
