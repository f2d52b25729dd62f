"""A flood of twenty times the sustainable rate: what models serve is written within its deadline, the rest is
answered by the fallback and says that it was late; nothing is dropped, and learning catches up."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import count, islice

import msgspec
import numpy as np
import pytest

from riverkeeper.topics.messages import WAITED, Prediction, Reason, Source
from tests.faults.load import BEGAN, sensors
from tests.faults.trial import Trial
from tests.system import account
from tests.system.harness import Event, Place, cause, first, place

SUSTAINED = 200  # facts/s; all models of the pipeline together take 3 ms a fact
FLOOD = 20 * SUSTAINED  # facts/s
FLOOD_S = float(os.environ.get("FLOOD_SECONDS", "8"))  # 30 for the figures in docs/reliability.md
CALM_S = 4.0
TICK_S = 0.05  # between two sends
OUTCOMES = 20  # one fact in so many comes true: some 200/s of the flood, as many as learning can take
FIRST = 1_000_000  # numbers that the trial's own load does not come to
# s beyond the deadline: a batch is judged by what the ones before it took to write, on a machine that others use
MARGIN_S = 0.5


@pytest.fixture
def kind() -> str:
    return "deliberate"


async def test_flood(trial: Trial) -> None:
    """Every fact is answered in time by a model, or late by the fallback."""
    deadline = trial.world.pipeline.deadline
    assert deadline is not None
    trial.spawn("ingest", "join", "learn", "supervisor")
    trial.spawn("score")
    await trial.flowing()
    facts = readings(trial)
    calm = await pour(trial, facts, SUSTAINED - 100, CALM_S)  # the trial's own load is the other 100/s
    await trial.until(trial._answered, "what came in calm is answered")
    flood = await pour(trial, facts, FLOOD, FLOOD_S)
    trial.mark()
    await trial.recovered()
    after = await pour(trial, facts, SUSTAINED - 100, CALM_S)
    await trial.quiet()

    said = answers(trial)
    told(said, flood)
    # A pause of the machine of one second makes a quarter of them late.
    assert reasons_of(said, calm)[""] > 0.7 * len(calm), "in calm the models serve"
    reasons = reasons_of(said, flood)
    assert reasons[Reason.LATE] > reasons[""] > 0, reasons
    assert reasons.keys() <= {"", Reason.LATE, Reason.NO_LEASE}, reasons  # who is paused has no lease, either
    waits = [wait for p, wait in said.values() if p.source is Source.MODEL]
    overdue = sum(wait > deadline.total_seconds() + MARGIN_S for wait in waits)
    assert overdue < 0.2 * len(waits), "but for a batch that a pause of the machine held up"
    # A pause of the whole machine makes two seconds of facts late; a backlog that stays makes all late.
    assert reasons_of(said, after)[""] > 0.5 * len(after), "models serve again"
    recorded(trial, said)
    caught_up(trial)


def readings(trial: Trial) -> Iterator[list[Event]]:
    """Fact after fact, with the outcome for some."""
    names = sensors(trial.world.pipeline.partitions)
    for number in count(FIRST):
        sensor, level = names[number % len(names)], float(number % 80)
        time_ = (BEGAN + timedelta(milliseconds=number)).isoformat()
        shared = {"time": time_, "number": f"n{number}", "level": level}
        fact = {"id": f"f{number}", "type": "reading", "sensor": sensor, "kind": "a", **shared}
        events = [Event(sensor, msgspec.json.encode(fact))]
        if number % OUTCOMES == 0:
            outcome = {"id": f"o{number}", "type": "truth", **shared}
            events.append(Event(sensor, msgspec.json.encode(outcome)))
        yield events


async def pour(trial: Trial, facts: Iterator[list[Event]], rate: float, seconds: float) -> range:
    """Sends that many facts a second, whatever becomes of them; returns their numbers."""
    total, sent, start = int(rate * seconds), 0, 0
    began = time.monotonic()
    while sent < total:
        due = min(total, int(rate * (time.monotonic() - began + TICK_S)))
        some = list(islice(facts, due - sent))
        if not sent:
            start = int(msgspec.json.decode(some[0][0].value)["number"][1:])
        await trial.send(event for events in some for event in events)
        sent = due
        trial.check()
        await asyncio.sleep(TICK_S)
    return range(start, start + total)


def answers(trial: Trial) -> dict[int, tuple[Prediction, float]]:
    """By number: the prediction that counts, and seconds from the fact's append to its own."""
    appended: dict[Place, int] = {place(r): r.timestamp for r in first(trial.outside["facts"])}
    decoder = msgspec.json.Decoder(Prediction)
    found = {}
    for record in first(trial.outside["predictions"]):
        prediction = decoder.decode(record.value or b"")
        found[int(prediction.key[1:])] = (prediction, (record.timestamp - appended[cause(record)[0]]) / 1000)
    return found


def reasons_of(said: dict[int, tuple[Prediction, float]], numbers: range) -> Counter[str]:
    return Counter(p.reason for number, (p, _) in said.items() if number in numbers)


def recorded(trial: Trial, said: dict[int, tuple[Prediction, float]]) -> None:
    """Vitals count what was shed: score was never restarted, so each late fact once."""
    counts: Counter[str] = Counter()
    longest = 0
    for vitals in trial.outside.vitals():
        if vitals.agent == "score" and not vitals.model:
            counts.update({name: n for name, n in vitals.counts.items() if name != WAITED})
            longest = max(longest, vitals.counts[WAITED])
    late = sum(p.reason == Reason.LATE for p, _ in said.values())
    assert (counts["facts"], counts["late"]) == (len(said), late)
    assert counts["shadows_shed"] > 0
    assert longest > 1_000


def caught_up(trial: Trial) -> None:
    """All examples were learned in the end, none marked as skipped; `quiet` has checked that spans meet."""
    for versions in account.manifests(trial.outside).values():
        assert not any(manifest.skipped for manifest in versions)
        assert versions[-1].learned == len(trial.outside["examples"])


def told(said: dict[int, tuple[Prediction, float]], flood: range) -> None:
    """The figures, one line."""
    inside = [(p, wait) for number, (p, wait) in said.items() if number in flood]
    served = [wait for p, wait in inside if p.source is Source.MODEL]
    late = [wait for p, wait in inside if p.source is not Source.MODEL]
    line = {
        "facts": len(inside),
        "served": len(served),
        "late": len(late),
        "served_s": [round(float(q), 3) for q in np.quantile(served or [0.0], (0.5, 0.99, 1.0))],
        "late_s": [round(float(q), 3) for q in np.quantile(late or [0.0], (0.5, 0.99, 1.0))],
    }
    sys.stdout.write(f"flood of {FLOOD}/s for {FLOOD_S:.0f} s: {json.dumps(line)}\n")
