"""Health is folded from vitals; the policies find what is wrong, and nothing that is not."""

from __future__ import annotations

import math

import pytest
from msgspec import structs

from riverkeeper.supervisor.policies import (
    BOUNDS,
    HEALTH_GRAINS,
    INTEGRITY,
    MAX_ENTRIES,
    MAX_GAPS,
    MAX_MARKS,
    MAX_VERSIONS,
    QUALITY,
    STALENESS,
    Finding,
    Health,
    Limits,
    cover,
    fold,
    look,
    merge,
    of_models,
)
from riverkeeper.supervisor.policies.sequential import GRAINS
from riverkeeper.topics.messages import Span, Vitals

LIMITS = Limits()
POLICIES = of_models(LIMITS)
SECOND = 1_000  # ms


class Stream:
    """Vitals of one model, a second apart, over facts and examples that never repeat."""

    def __init__(self, step_ms: int = SECOND) -> None:
        self.health = Health(model="m")
        self.now = 1_000_000
        self.step_ms = step_ms
        self.ends = {"score": 0, "learn": 0}
        self.last: Vitals | None = None

    def add(self, agent: str, size: int, **seen: object) -> Stream:
        start = self.ends[agent]
        self.ends[agent] = start + size
        begin, self.now = self.now, self.now + self.step_ms
        record = {"agent": agent, "replica": "r", "model": "m", "spans": [Span(0, start, start + size)]}
        self.last = Vitals.model_validate(record | {"from_ms": begin, "to_ms": self.now} | seen)
        return self.give(self.last)

    def give(self, vitals: Vitals) -> Stream:
        self.health = fold(self.health, vitals, POLICIES, self.now)
        return self

    def score(self, asked: int, bad: int = 0, **seen: object) -> Stream:
        return self.add("score", asked, asked=asked, out_of_bounds=bad, **seen)

    def learn(self, labelled: int, error: float, baseline: float = 1.0, **seen: object) -> Stream:
        sums = {"error": error * labelled, "baseline_error": baseline * labelled}
        return self.add("learn", labelled, learned=labelled, labelled=labelled, **sums, **seen)

    def found(self, arriving_ms: int = 0) -> list[Finding]:
        health = structs.replace(self.health, arriving_ms=arriving_ms)
        return look(health, POLICIES, self.now)

    def policies(self, arriving_ms: int = 0) -> list[str]:
        return [f.policy for f in self.found(arriving_ms)]


@pytest.mark.parametrize(
    ("asked", "bad", "found"),
    [
        (199, 40, []),  # too few answers for a share
        (200, 2, []),  # exactly 1 %
        (200, 3, [BOUNDS]),
        (19, 19, []),  # too few for a burst
        (20, 10, [BOUNDS]),
        (20, 9, []),
        (1_000, 10, []),
        (1_000, 11, [BOUNDS]),
    ],
)
def test_bounds_by_share_and_by_burst(asked: int, bad: int, found: list[str]) -> None:
    assert Stream().score(asked, bad).policies() == found


def test_raised_counts_as_bad() -> None:
    assert Stream().add("score", 200, asked=200, raised=2, out_of_bounds=1).policies() == [BOUNDS]


@pytest.mark.parametrize(("rate", "step_ms"), [(1_000, 1_000), (1, 1_000), (7, 10)])
def test_the_onset_is_found_at_any_rate(rate: int, step_ms: int) -> None:
    stream = Stream(step_ms)
    for _ in range(400):
        stream.score(rate)
    began = stream.now
    while not stream.policies():
        stream.score(rate, rate)
        assert stream.now - began < 100 * step_ms
    (finding,) = stream.found()
    grain_ms = LIMITS.window_answers // HEALTH_GRAINS / rate * step_ms
    assert began - grain_ms <= finding.onset_ms <= began


def test_the_window_forgets_what_is_past() -> None:
    stream = Stream().score(1_000, 500)
    assert stream.policies() == [BOUNDS]
    stream.score(1_000).score(1_000)
    assert stream.policies() == []


def test_the_window_forgets_what_is_long_ago() -> None:
    stream = Stream().score(300, 200)
    stream.now += LIMITS.window_ms + SECOND
    assert stream.policies() == []


@pytest.mark.parametrize("refused", ["out_of_bounds: 3e5", "not_finite", "raises: ValueError"])
def test_a_gate_refusal_for_wrong_answers_is_a_finding(refused: str) -> None:
    stream = Stream().score(10, version=1).add("score", 0, version=2, gate=refused)
    (finding,) = stream.found()
    assert finding.policy == BOUNDS and refused in finding.reason
    assert stream.health.versions[2].refused and not stream.health.versions[1].refused


def test_a_refusal_is_over_once_a_later_version_has_answered_for_long() -> None:
    stream = Stream().score(10, version=1).add("score", 0, version=2, gate="out_of_bounds")
    assert stream.score(300, version=1).policies() == [BOUNDS]
    assert stream.score(199, version=3).policies() == [BOUNDS]
    assert stream.score(1, version=3).policies() == []


@pytest.mark.parametrize("refused", ["fingerprint: differs", "slow: 40 ms", ""])
def test_other_refusals_are_not_the_models_fault(refused: str) -> None:
    stream = Stream().score(10, gate=refused)
    assert not any(f.grave for f in stream.found())
    assert stream.policies() == ([INTEGRITY] if refused else [])


@pytest.mark.parametrize(
    ("labelled", "error", "found"),
    [(499, 9.0, []), (500, 1.1, []), (500, 1.11, [QUALITY]), (500, 0.9, []), (500, math.inf, [QUALITY])],
)
def test_quality_against_the_baseline(labelled: int, error: float, found: list[str]) -> None:
    assert Stream().learn(labelled, error).policies() == found


def test_an_error_that_is_no_number_is_the_worst() -> None:
    stream = Stream().learn(500, math.nan)
    assert stream.policies() == [QUALITY]
    assert Health.decode(stream.health.encode()).encode() == stream.health.encode()


def test_quality_finds_the_change() -> None:
    stream = Stream()
    for _ in range(50):
        stream.learn(40, 1.0)
    began = stream.now
    while not stream.policies():
        stream.learn(40, 3.0)
    assert stream.found()[0].onset_ms == began


def classified(stream: Stream, wrong: int | None) -> Stream:
    """100 answers more, with the log loss of a few that were sure and wrong: its tail hides all else."""
    sure = {"count": 100, "total": 40.0, "squares": 900.0, "low": 0.0, "high": 30.0}
    return stream.learn(100, 0.4, errors=sure, baselines=sure | {"total": 70.0}, wrong=wrong)


def seasoned(wrong: int) -> Stream:
    """More than a season of examples, a block of history with each record."""
    stream = Stream(step_ms=2 * LIMITS.season_ms // GRAINS)
    for _ in range(GRAINS // 2 + 10):
        assert classified(stream, wrong).policies() == []
    return stream


@pytest.mark.parametrize(("before", "after"), [(10, 30), (2, 15), (40, 75)])
def test_answers_that_are_wrong_more_often_are_found(before: int, after: int) -> None:
    stream = seasoned(before)
    began = stream.now
    while not stream.policies():
        classified(stream, after)
        assert stream.now - began < 50 * stream.step_ms
    (finding,) = stream.found()
    assert finding.policy == QUALITY and not finding.grave
    assert finding.evidence == pytest.approx({"wrong": after / 100, "usual": before / 100}, rel=0.2)
    assert finding.onset_ms == began


@pytest.mark.parametrize("after", [10, 5, 13, None])
def test_answers_that_are_about_as_often_wrong_are_not(after: int | None) -> None:
    stream = seasoned(10)
    for _ in range(300):
        classified(stream, after)
        assert stream.policies() == []


def test_a_record_that_overlaps_counts_for_its_new_part() -> None:
    stream = Stream().score(100, 50)
    stream.ends["score"] = 50
    stream.score(100, 50)  # facts 50..149, of which 50..99 are known
    assert sum(a.size for a in stream.health.answers) == 150
    assert sum(a.bad for a in stream.health.answers) == 75


def test_a_late_record_still_counts() -> None:
    stream = Stream()
    stream.ends["score"] = 100
    stream.score(100)
    stream.ends["score"] = 0
    stream.score(100)
    assert sum(a.size for a in stream.health.answers) == 200


def test_agents_cover_their_own_inputs() -> None:
    stream = Stream().score(100).learn(100, 1.0)
    assert stream.health.answers[0].size == stream.health.examples[0].size == 100


def test_a_new_line_is_not_held_to_the_old_ones_sins() -> None:
    stream = Stream().score(300, 300, version=1).learn(600, 9.0, version=1)
    assert stream.policies() == [BOUNDS, QUALITY]
    stream.ends["learn"] = 0  # relearning takes the same examples again
    stream.learn(600, 0.5, line=1, version=2)
    assert stream.policies() == []
    assert stream.health.learned == {0: 600} and stream.health.examples[0].size == 600
    assert stream.health.versions[1].bad == 300  # yet what a version did is remembered


def test_an_earlier_lines_record_counts_for_nothing() -> None:
    stream = Stream().score(10, line=2)
    before = stream.health
    assert stream.score(300, 300, line=1).health is before


def test_only_what_came_since_is_judged() -> None:
    stream = Stream().score(300, 300)
    since = stream.now
    stream.score(300)
    assert look(stream.health.within(0, since), POLICIES, stream.now) == []
    assert look(stream.health.within(1, 0), POLICIES, stream.now) == []  # another line's health


def test_silence_while_examples_arrive() -> None:
    stream = Stream().learn(100, 1.0)
    learned_at = stream.now
    assert stream.policies(learned_at + LIMITS.max_silence_ms - 1) == []
    assert stream.policies(learned_at + LIMITS.max_silence_ms) == [STALENESS]


def test_silence_while_nothing_arrives_is_peace() -> None:
    stream = Stream().learn(100, 1.0)
    arrived = stream.now
    stream.now += 10 * LIMITS.max_silence_ms
    assert stream.policies(arrived) == []


def test_an_old_version_in_use() -> None:
    stream = Stream().score(10, version=1)
    first_asked = stream.health.version_ms
    late = first_asked + LIMITS.max_staleness_ms
    stream.learn(1, 1.0, version=1)
    stream.health = structs.replace(stream.health, progress_ms=late)
    assert stream.policies(late) == [STALENESS]
    stream.score(10, version=2)
    assert stream.policies(late) == []


def test_health_stays_small_and_survives_json() -> None:
    stream = Stream()
    for i in range(2_000):
        stream.score(1 + i % 50, version=i).learn(1 + i % 50, 1.0, version=i)
        stream.ends["score"] += 1  # a gap after each: vitals of another replica, lost
    health = stream.health
    assert len(health.answers) <= MAX_ENTRIES and len(health.examples) <= MAX_ENTRIES
    assert len(health.versions) == MAX_VERSIONS and len(health.marks) <= MAX_MARKS
    assert len(health.covered["score"]) <= MAX_GAPS
    assert len(health.encode()) < 20_000
    assert Health.decode(health.encode()).encode() == health.encode()


def test_spans_merge_and_cover() -> None:
    spans = [Span(0, 5, 9), Span(1, 0, 2), Span(0, 0, 5), Span(0, 7, 8), Span(2, 3, 3)]
    assert merge(spans) == (Span(0, 0, 9), Span(1, 0, 2))
    scattered = [Span(0, 10 * i, 10 * i + 1) for i in range(MAX_GAPS + 3)]
    covered = cover([], [*scattered, Span(1, 4, 5)])
    assert len(covered) == MAX_GAPS + 1
    assert covered[0] == Span(0, 0, 31) and covered[-1] == Span(1, 4, 5)
