"""From findings to verdicts, as values: no broker, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from msgspec import structs

from riverkeeper.supervisor.lifecycle import (
    Book,
    Course,
    KnownVersion,
    decide,
    incident_id,
    last_good,
    operator_verdict,
    skipped,
)
from riverkeeper.supervisor.policies import (
    BOUNDS,
    STALENESS,
    Answers,
    Examples,
    Finding,
    Health,
    Limits,
    Mark,
    Tally,
)
from riverkeeper.topics.messages import Span, State, Verdict

LIMITS = Limits()
GOOD = Tally(asked=100)
BAD = Tally(asked=100, bad=50)


def finding(onset_ms: int = 500) -> Finding:
    return Finding(BOUNDS, "wild", onset_ms, {"share": 0.5}, grave=True)


def version(
    number: int, *, line: int = 0, parent: int | None = None, at: int = 0, kept: bool = True
) -> KnownVersion:
    parent = number - 1 if parent is None else parent
    return KnownVersion(number, line, parent, {0: 10 * number, 1: number}, at or 100 * number, kept)


def known(*versions: KnownVersion) -> dict[int, KnownVersion]:
    return {v.version: v for v in versions}


def tallied(tallies: Mapping[int, Tally], **health: object) -> Health:
    return Health(model="m", versions=dict(tallies), **health)  # type: ignore[arg-type]


class Log:
    """The verdicts topic, and the supervisor and operators that write to it."""

    def __init__(self, *, live: bool = True, limits: Limits = LIMITS) -> None:
        self.book = Book.declared(["m", "n"], ["m"] if live else [])
        self.limits = limits
        self.end = 0
        self.now = 1_000

    @property
    def state(self) -> State:
        return self.book.routing.routes["m"].state

    def write(self, verdict: Verdict) -> bool:
        """Whether it came into force."""
        before = self.book.routing
        self.book = self.book.obey(self.end, verdict, self.limits)
        self.end += 1
        return self.book.routing.routes != before.routes

    def due(
        self, *found: Finding, health: Health | None = None, fallback: bool = False, line: int = 0
    ) -> Verdict | None:
        route = self.book.routing.routes["m"]
        return decide(
            route,
            self.book.courses["m"],
            health or Health(model="m", line=route.line),
            found,
            known(version(50, line=line)) if line else {},
            self.limits,
            self.now,
            fallback=fallback,
        )

    def obey(self, *found: Finding, health: Health | None = None, line: int = 0) -> Verdict:
        verdict = self.due(*found, health=health, line=line)
        assert verdict is not None and self.write(verdict)
        return verdict

    def fall(self) -> Verdict:
        return self.obey(finding())

    def recover(self) -> Verdict:
        """To probation, as soon as it may be."""
        line = self.book.routing.routes["m"].line
        self.now += self.book.courses["m"].dwell_ms(self.limits)
        return self.obey(line=line)

    def clean(self, *, answers: int = 500, examples: int = 200, error: float = 1.0) -> Health:
        return Health(
            model="m",
            line=self.book.routing.routes["m"].line,
            answers=(Answers(self.now, self.now, 2, answers, 0),),
            examples=(Examples(self.now, self.now, 2, examples, error * examples, float(examples)),),
        )


def test_a_finding_takes_a_model_out_and_opens_a_line() -> None:
    log = Log()
    verdict = log.fall()
    assert (verdict.state, verdict.line, verdict.follows, verdict.by) == (
        State.QUARANTINED,
        1,
        -1,
        "supervisor",
    )
    assert verdict.evidence["share"] == 0.5 and verdict.incident


def test_without_findings_nothing_is_decided() -> None:
    assert Log().due() is None


def test_staleness_takes_nothing_out() -> None:
    assert Log().due(Finding(STALENESS, "silent", 0)) is None


def test_the_fallback_is_never_taken_out() -> None:
    assert Log().due(finding(), fallback=True) is None


def test_quarantine_waits_for_the_dwell_and_for_a_version_of_the_line() -> None:
    log = Log()
    log.fall()
    assert log.due(line=1) is None
    log.now += LIMITS.min_dwell_ms
    assert log.due(line=7) is None  # another line's
    verdict = log.obey(line=1)
    assert verdict.state is State.PROBATION and verdict.line == 1


def test_a_finding_in_quarantine_changes_nothing() -> None:
    log = Log()
    log.fall()
    assert log.due(finding()) is None


@pytest.mark.parametrize("live", [True, False])
def test_probation_leads_back_to_where_it_was(live: bool) -> None:
    log = Log(live=live)
    log.fall()
    quarantined = log.book.routing.routes["m"]
    log.recover()
    verdict = log.obey(health=log.clean())
    assert verdict.state is (State.LIVE if live else State.SHADOW)
    assert (verdict.line, verdict.restore, verdict.skip) == (1, quarantined.restore, quarantined.skip)
    assert verdict.incident == quarantined.incident


@pytest.mark.parametrize(
    ("answers", "examples", "error"), [(499, 200, 1.0), (500, 199, 1.0), (500, 200, 1.2)]
)
def test_probation_must_be_served_in_full(answers: int, examples: int, error: float) -> None:
    log = Log()
    log.fall()
    log.recover()
    assert log.due(health=log.clean(answers=answers, examples=examples, error=error)) is None


def test_what_came_before_probation_does_not_count_for_it() -> None:
    log = Log()
    log.fall()
    earlier = replace(log.book.courses["m"]).since_ms
    log.recover()
    health = log.clean()
    stale = structs.replace(health, answers=(Answers(earlier, earlier, 2, 500, 0),))
    assert log.due(health=stale) is None
    assert log.due(health=structs.replace(health, line=0)) is None


def test_a_relapse_opens_another_line_of_the_same_incident_and_dwells_longer() -> None:
    log = Log()
    first = log.fall()
    assert log.book.courses["m"].dwell_ms(LIMITS) == LIMITS.min_dwell_ms
    log.recover()
    second = log.fall()
    assert second.line == 2 and second.incident == first.incident
    assert log.book.courses["m"].dwell_ms(LIMITS) == 2 * LIMITS.min_dwell_ms


def test_the_dwell_is_bounded() -> None:
    limits = replace(LIMITS, max_relapses=40)
    course = Course(State.LIVE, since_ms=1_000, falls=tuple(range(960, 1_000)))
    assert course.dwell_ms(limits) == limits.max_dwell_ms


def test_the_last_relapse_gives_the_model_up_until_an_operator_admits_it() -> None:
    log = Log()
    states = []
    for _ in range(LIMITS.max_relapses):
        states.append(log.fall().state)
        log.recover()
    states.append(log.fall().state)
    assert states == [State.QUARANTINED] * LIMITS.max_relapses + [State.DESTROYED]
    log.now += LIMITS.relapse_ms
    assert log.due(line=log.book.routing.routes["m"].line) is None
    admitted = operator_verdict(log.book.routing, "m", State.PROBATION, "once more", log.now, "kim")
    assert log.write(admitted)
    assert log.fall().state is State.QUARANTINED  # counted anew


def test_relapses_of_an_hour_ago_are_forgotten() -> None:
    log = Log()
    for _ in range(LIMITS.max_relapses):
        log.fall()
        log.recover()
    log.now += LIMITS.relapse_ms
    assert log.fall().state is State.QUARANTINED
    assert log.book.courses["m"].dwell_ms(LIMITS) == LIMITS.min_dwell_ms


def test_a_verdict_issued_twice_counts_once() -> None:
    log = Log()
    verdict = log.fall()
    before = log.book.courses
    assert not log.write(verdict)
    assert log.book.courses == before and log.book.routing.ignored == 1


def test_an_operators_quarantine_holds_until_an_operator_admits() -> None:
    log = Log()
    assert log.write(operator_verdict(log.book.routing, "m", State.QUARANTINED, "look", log.now, "kim"))
    log.now += 10 * LIMITS.max_dwell_ms
    assert log.due(line=0) is None
    assert log.due(finding()) is None
    route = log.book.routing.routes["m"]
    assert route.line == 0
    admitted = operator_verdict(log.book.routing, "m", State.LIVE, "fine", log.now, "kim")
    assert admitted.incident == route.incident != ""
    assert log.write(admitted) and log.state is State.LIVE
    assert log.due(finding()) is not None


def test_an_operator_on_top_of_a_healing_quarantine_stops_the_healing() -> None:
    log = Log()
    log.fall()
    route = log.book.routing.routes["m"]
    verdict = operator_verdict(log.book.routing, "m", State.QUARANTINED, "wait", log.now, "kim")
    assert (verdict.line, verdict.restore, verdict.skip) == (route.line, route.restore, route.skip)
    log.write(verdict)
    log.now += LIMITS.max_dwell_ms
    assert log.due(line=1) is None


def test_an_operator_is_no_supervisor_and_knows_the_models() -> None:
    log = Log()
    with pytest.raises(ValueError, match="m: an operator's verdict cannot be by 'supervisor'"):
        operator_verdict(log.book.routing, "m", State.LIVE, "", 0, "supervisor")
    with pytest.raises(KeyError):
        operator_verdict(log.book.routing, "stranger", State.LIVE, "", 0, "kim")


def test_every_episode_has_its_own_incident() -> None:
    log = Log()
    first = log.fall().incident
    log.recover()
    log.obey(health=log.clean())
    assert incident_id(log.book.routing.routes["m"]) != first


# --- where to go back to ---


def restored(
    tallies: Mapping[int, Tally],
    versions: Mapping[int, KnownVersion],
    onset: int = 500,
    relapses: int = 0,
    **route: object,
) -> int:
    at = replace(Log().book.routing.routes["m"], **route)  # type: ignore[arg-type]
    good = last_good(at, tallied(tallies), versions, LIMITS, onset, relapses)
    return good.version if good else 0


def test_the_last_good_version_before_the_onset() -> None:
    versions = known(version(3), version(4), version(5), version(6))
    assert restored({3: GOOD, 4: GOOD, 5: GOOD, 6: GOOD}, versions) == 5
    assert restored({3: GOOD, 4: GOOD, 5: BAD, 6: GOOD}, versions) == 4
    assert restored({3: GOOD, 4: Tally(asked=9, refused=True)}, versions) == 3
    assert restored({}, versions) == 0  # none has answered: none is known to be good
    worse = Tally(asked=9, labelled=200, error=300.0, baseline=200.0)
    assert restored({3: GOOD, 4: worse}, versions) == 3


def test_a_version_whose_bytes_are_gone_cannot_be_restored() -> None:
    versions = known(version(3), version(4, kept=False))
    assert restored({3: GOOD, 4: GOOD}, versions) == 3


def test_a_relapse_discredits_the_version_it_started_from() -> None:
    versions = known(version(1), version(2), version(3), version(4), version(9, line=1, parent=3, at=900))
    tallies = dict.fromkeys((1, 2, 3, 4), GOOD) | {9: BAD}
    assert restored(tallies, versions, onset=950, line=1, restore=3) == 2
    assert restored({**tallies, 9: GOOD}, versions, onset=950, line=1, restore=3) == 9
    assert restored(tallies, versions, onset=950, line=2, restore=0) == 0


def test_versions_of_an_abandoned_line_are_not_gone_back_to() -> None:
    # Line 0 went wrong after 2; line 1 restored it and bore 6; line 2 started from 6 and went wrong.
    versions = known(
        version(1),
        version(2),
        version(3),
        version(4),
        version(6, line=1, parent=2),
        version(8, line=2, parent=6),
    )
    tallies = dict.fromkeys((1, 2, 3, 4, 6), GOOD)
    assert restored(tallies, versions, onset=10_000, line=2, restore=6) == 2


def test_each_relapse_goes_back_twice_as_far_as_the_one_before() -> None:
    versions = known(*(version(n) for n in range(1, 21)))
    tallies = dict.fromkeys(range(1, 21), GOOD)
    gone_back, start = [], 20
    for relapses in range(1, LIMITS.max_relapses):
        start = restored(tallies, versions, onset=9_000, relapses=relapses, line=relapses, restore=start)
        gone_back.append(start)
    assert gone_back == [18, 14, 6, 1]
    assert restored(tallies, versions, onset=9_000, relapses=4, line=5, restore=1) == 0, "none is left"


def test_a_relapse_with_nothing_to_go_back_to_begins_anew_without_all_that_was_learned() -> None:
    log = Log()
    marks = (Mark(400, {0: 10}),)
    health = Health(model="m", learned={0: 77}, marks=marks)
    assert log.obey(finding(), health=health).skip == (Span(0, 10, 77),)
    log.recover()
    again = log.obey(finding(onset_ms=log.now), health=Health(model="m", line=1, learned={0: 99}))
    assert (again.restore, again.skip) == (0, (Span(0, 0, 99),))


def skip(
    health: Health, versions: Mapping[int, KnownVersion], good: int, onset: int = 500, **route: object
) -> tuple[Span, ...]:
    at = replace(Log().book.routing.routes["m"], **route)  # type: ignore[arg-type]
    return skipped(at, health, versions, versions.get(good), onset)


def test_skip_is_from_the_good_version_to_the_latest_learned() -> None:
    versions = known(version(3), version(5))
    health = tallied({}, learned={0: 77, 1: 4})
    assert skip(health, versions, good=3) == (Span(0, 30, 77), Span(1, 3, 5))
    assert skip(tallied({}), versions, good=3) == (Span(0, 30, 50), Span(1, 3, 5))
    assert skip(tallied({}, learned={0: 99}, line=4), versions, good=3) == (Span(0, 30, 50), Span(1, 3, 5))


def test_skip_from_the_onset_when_nothing_is_good() -> None:
    marks = (Mark(400, {0: 10}), Mark(500, {0: 20}), Mark(600, {0: 40}))
    health = tallied({}, learned={0: 77, 1: 9}, marks=marks)
    assert skip(health, {}, good=0) == (Span(0, 20, 77), Span(1, 0, 9))
    assert skip(health, {}, good=0, onset=300) == (Span(0, 0, 77), Span(1, 0, 9))


def test_what_was_skipped_stays_skipped_below_the_new_start() -> None:
    old = (Span(0, 5, 12), Span(0, 25, 40), Span(1, 0, 2))
    versions = known(version(3))
    health = tallied({}, learned={0: 35})
    assert skip(health, versions, good=3, skip=old) == (Span(0, 30, 40),)
    assert skip(health, {}, good=0, skip=old, onset=0) == (Span(0, 0, 40), Span(1, 0, 2))
