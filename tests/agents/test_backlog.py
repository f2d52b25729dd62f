"""Learning makes way while score says that facts wait, never stands still, and catches up; nothing is
passed over that the pipeline has not declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import TopicPartition

from riverkeeper import Pipeline, Shed
from riverkeeper.agents.agent import Runtime
from riverkeeper.agents.backlog import HEARD_WINDOWS, Backlog
from riverkeeper.agents.learn import MAX_REST, SHARE_BEHIND, Learn, LearnWork
from riverkeeper.models.student import Student, start_line
from riverkeeper.models.version import verify
from riverkeeper.status import LoadStatus, load_status
from riverkeeper.topics.messages import WAITED, Span, State, Verdict, Vitals
from tests.agents.test_learn import ALLOW, KEY, Log, numbered, pipeline, published, records, started
from tests.agents.tiny import Stored, runtime


@dataclass
class Clock:
    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def at_time(p: Pipeline, monotonic: Clock, now: Callable[[], float] = lambda: 0.0) -> Runtime:
    return replace(runtime(p), monotonic=monotonic, now=now, signing_key=KEY)


def word(waited_ms: int, replica: str = "a", model: str = "", agent: Any = "score") -> Stored:
    vitals = Vitals(agent=agent, replica=replica, model=model, from_ms=0, to_ms=0, counts={WAITED: waited_ms})
    return Stored(0, vitals.encode(), key=model.encode(), topic="p.vitals")


# What is heard.


def test_a_backlog_stands_from_the_word_that_facts_wait_to_the_one_that_they_do_not() -> None:
    backlog = Backlog(at_time(pipeline(), Clock()))
    assert not backlog.stands()
    backlog.note(word(1_001))
    assert backlog.stands()
    backlog.note(word(1_000))
    assert not backlog.stands()


def test_it_stands_while_any_replica_is_behind() -> None:
    backlog = Backlog(at_time(pipeline(), Clock()))
    backlog.note(word(5_000, "a"))
    backlog.note(word(5_000, "b"))
    backlog.note(word(0, "a"))
    assert backlog.stands()


def test_the_word_of_a_dead_replica_does_not_hold_for_ever() -> None:
    clock = Clock()
    run = at_time(pipeline(), clock)
    backlog = Backlog(run)
    backlog.note(word(5_000))
    clock.seconds += HEARD_WINDOWS * run.limits.vitals_seconds - 0.01
    assert backlog.stands()
    clock.seconds += 0.02
    assert not backlog.stands()


@pytest.mark.parametrize(
    "other",
    [word(5_000, model="main"), word(5_000, agent="join"), Stored(0, b"{"), Stored(0, None, key=None)],
)
def test_nothing_else_on_vitals_is_a_backlog(other: Stored) -> None:
    other.key = other.key or b""
    backlog = Backlog(at_time(pipeline(), Clock()))
    backlog.note(other)
    assert not backlog.stands()


# What learning does.


def learner(p: Pipeline, clock: Clock, now: Callable[[], float] = lambda: 0.0) -> tuple[Learn, LearnWork]:
    agent, log = Learn(at_time(p, clock, now)), Log()
    students = [Student(name, p, ALLOW) for name in p.models]
    for student in students:
        start_line(student, agent.verdicts.routing.routes[student.name], log.library, {0: 0})
    return agent, LearnWork(agent, 0, students)


def test_behind_learning_takes_its_share_of_the_time_and_no_more() -> None:
    clock = Clock()
    agent, work = learner(pipeline(), clock)
    agent.worked(0.3)
    assert work.wanted(), "without a backlog it never rests"
    agent.backlog.note(word(5_000))
    busy, began = 0.0, clock.seconds
    while clock.seconds - began < 60:
        agent.backlog.note(word(5_000))
        if work.wanted():
            clock.seconds += 0.2
            busy += 0.2
            agent.worked(0.2)
        else:
            clock.seconds += 0.1
    assert busy == pytest.approx(SHARE_BEHIND * 60, rel=0.15)


def test_a_rest_is_bounded_and_ends_with_the_backlog() -> None:
    clock = Clock()
    agent, work = learner(pipeline(), clock)
    agent.backlog.note(word(5_000))
    agent.worked(3_600.0)
    assert not work.wanted()
    agent.backlog.note(word(0))
    assert work.wanted()
    agent.backlog.note(word(5_000))
    clock.seconds += MAX_REST
    agent.backlog.note(word(5_000))
    assert work.wanted()


# What learning leaves out.


def test_a_learner_that_is_behind_marks_what_it_sheds() -> None:
    p, log = replace_shed(0.5), Log()
    student = started(p, log)
    for start in range(0, 4_000, 250):  # not the stretches' own borders
        student.study(0, numbered(start, start + 250), start + 250, behind=True)
    manifest = published(student, log)
    verify(manifest, KEY)
    skipped = {o for span in manifest.skipped for o in range(span.start, span.end)}
    learned = {o for span in manifest.spans for o in range(span.start, span.end)}
    assert skipped == {o for o in range(4_000) if not p.taught(0, o)} and skipped
    assert learned == set(range(4_000)) - skipped
    assert manifest.learned == len(learned) and manifest.offsets[0] == 4_000
    assert student.vitals("r", 0, 1).counts == {"examples_shed": len(skipped)}


def test_one_that_is_not_behind_learns_all() -> None:
    p, log = replace_shed(0.5), Log()
    student = started(p, log)
    student.study(0, numbered(0, 2_000), 2_000)
    manifest = published(student, log)
    assert (manifest.spans, manifest.skipped) == ((Span(0, 0, 2_000),), ())


HOUR = 3_600.0
AT = Stored(0, b"").timestamp / 1_000  # when the examples of `records` were appended, in seconds


@pytest.mark.parametrize(
    ("waited", "verdict_at", "shed"),
    [
        (HOUR, None, True),
        (60.0, None, False),  # within learn_after
        (HOUR, AT + 10, False),  # a verdict has it learn them again: old, but no backlog
        (HOUR, AT - 10, True),
    ],
)
async def test_only_a_backlog_of_load_is_shed(waited: float, verdict_at: float | None, shed: bool) -> None:
    p = replace_shed(0.0)
    agent, work = learner(p, Clock(), lambda: AT + waited)
    if verdict_at is not None:
        verdict = Verdict(
            model="main",
            state=State.LIVE,
            follows=-1,
            policy="t",
            reason="t",
            at_ms=int(verdict_at * 1_000),
        )
        agent.verdicts.routing = agent.verdicts.routing.obey(0, verdict)
    tp = TopicPartition("p.examples", 0)
    await work.process({tp: records(tp, 0, 400)})
    by_model = {v.model: v for v in work.vitals()}
    assert by_model["main"].learned == (0 if shed else 400)
    assert by_model["main"].counts == ({"examples_shed": 400} if shed else {})
    assert work.positions[tp] == 400


def replace_shed(examples: float) -> Pipeline:
    plain = pipeline()
    return Pipeline(
        name="p",
        facts=plain.facts,
        outcomes=plain.outcomes,
        key=plain.key,
        join=plain.join,
        features=plain.features,
        label=plain.label,
        models=plain.models,
        serve="main",
        fallback="fall",
        bounds=plain.bounds,
        publish=plain.publish,
        shed=Shed(examples=examples, learn_after=timedelta(minutes=5)),
    )


# What is told of it.


def test_status_tells_what_was_shed_in_the_last_minute() -> None:
    def told(at_ms: int, agent: Any, model: str, **counts: int) -> Stored:
        vitals = Vitals(agent=agent, replica="a", model=model, from_ms=0, to_ms=0, counts=counts)
        return Stored(0, vitals.encode(), timestamp=at_ms)

    now = 1_000_000
    load = load_status(
        [
            told(now - 61_000, "score", "", facts=9, late=9, waited_ms=9_000),
            told(now - 30_000, "score", "", facts=100, late=4, shadows_shed=7, waited_ms=2_100),
            told(now - 1_000, "score", "", facts=50, too_slow=1, waited_ms=300),
            told(now - 1_000, "learn", "main", examples_shed=200),
            told(now, "join", "", examples=3, late=5),  # outcomes that came late are another thing
            Stored(0, b"{", timestamp=now),
        ]
    )
    assert load == LoadStatus(
        waited_ms=2_100, facts=150, late=4, too_slow=1, shadows_shed=7, examples_shed=200
    )
    assert load_status([]) == LoadStatus(0, 0, 0, 0, 0, 0)
