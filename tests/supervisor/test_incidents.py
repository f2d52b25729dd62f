"""Incidents are told from verdicts; alarms come and go with their findings."""

from __future__ import annotations

from riverkeeper.supervisor.incidents import (
    ACKNOWLEDGED,
    MAX_STEPS,
    Episodes,
    Stage,
    acknowledged,
    alarms,
    folded,
    obey,
    stage,
    told,
)
from riverkeeper.supervisor.lifecycle import KnownVersion
from riverkeeper.supervisor.policies import BOUNDS, STALENESS, Finding
from riverkeeper.topics.messages import Incident, State, Verdict


def verdict(
    state: State, at: int, *, line: int = 1, restore: int = 0, policy: str = BOUNDS, incident: str = "m-0"
) -> Verdict:
    return Verdict(
        model="m",
        state=state,
        follows=-1,
        line=line,
        restore=restore,
        policy=policy,
        reason="why",
        evidence={"share": 0.5},
        incident=incident,
        at_ms=at,
    )


def tell(*verdicts: Verdict, first_line: int = 0) -> Episodes:
    episodes: Episodes = {}
    line = first_line
    for v in verdicts:
        episodes, line = obey(episodes, v, line), v.line
    return episodes


def states(incident: Incident) -> list[str]:
    return [step.state for step in incident.timeline]


def version(number: int, line: int, at: int) -> KnownVersion:
    return KnownVersion(number, line, 0, {}, at)


FALL = verdict(State.QUARANTINED, 10)
TRY = verdict(State.PROBATION, 20)
BACK = verdict(State.LIVE, 30)


def test_a_whole_episode() -> None:
    (episode,) = tell(FALL, TRY, BACK).values()
    incident = told(episode, {7: version(7, 1, 15), 8: version(8, 1, 18), 6: version(6, 0, 1)})
    assert states(incident) == ["detected", "quarantined", "relearned", "probation", "re-admitted"]
    assert [s.at_ms for s in incident.timeline] == [10, 10, 15, 20, 30]
    assert incident.resolved and incident.policy == BOUNDS and incident.evidence == {"share": 0.5}


def test_restored_rather_than_relearned_when_there_was_something_to_restore() -> None:
    (episode,) = tell(verdict(State.QUARANTINED, 10, restore=5)).values()
    assert states(told(episode, {7: version(7, 1, 15)})) == ["detected", "quarantined", "restored"]
    assert "from version 5" in told(episode, {7: version(7, 1, 15)}).timeline[-1].reason


def test_healing_never_precedes_the_quarantine() -> None:
    (episode,) = tell(FALL).values()
    incident = told(episode, {7: version(7, 1, 3)})  # a learner whose clock is behind
    assert states(incident)[-1] == "relearned" and incident.timeline[-1].at_ms == 10


def test_a_relapse_goes_on_in_the_same_incident() -> None:
    again = verdict(State.QUARANTINED, 30, line=2, restore=1)
    (episode,) = tell(FALL, TRY, again).values()
    incident = told(episode, {7: version(7, 1, 15), 9: version(9, 2, 40)})
    assert states(incident) == [
        "detected",
        "quarantined",
        "relearned",
        "probation",
        "detected",
        "quarantined",
        "restored",
    ]
    assert not incident.resolved


def test_given_up() -> None:
    (episode,) = tell(FALL, TRY, verdict(State.DESTROYED, 30, line=2)).values()
    assert states(episode.incident)[-2:] == ["detected", "destroyed"] and not episode.incident.resolved


def test_an_operators_quarantine_detects_and_restores_nothing() -> None:
    (episode,) = tell(verdict(State.QUARANTINED, 10, line=4, policy="operator"), first_line=4).values()
    assert states(told(episode, {7: version(7, 4, 15)})) == ["quarantined"]


def test_a_verdict_without_incident_tells_nothing() -> None:
    assert tell(verdict(State.SHADOW, 10, incident="")) == {}


def test_two_episodes_are_two_incidents() -> None:
    later = verdict(State.QUARANTINED, 40, line=2, incident="m-3")
    assert list(tell(FALL, TRY, BACK, later)) == ["m-0", "m-3"]


def test_a_timeline_is_bounded_and_keeps_both_ends() -> None:
    falls = [verdict(State.QUARANTINED, at, line=at) for at in range(1, MAX_STEPS + 1)]
    (episode,) = tell(*falls, verdict(State.LIVE, 9_999, line=MAX_STEPS)).values()
    timeline = episode.incident.timeline
    assert len(timeline) == MAX_STEPS
    assert timeline[0].at_ms == 1 and timeline[-1].state == "re-admitted"


def test_an_alarm_opens_once_and_resolves() -> None:
    found = [Finding(STALENESS, "silent", 5, {"silence_s": 9.0})]
    (opened,) = alarms({}, "m", found, 10)
    assert states(opened) == ["alarm"] and not opened.resolved
    written = {opened.id: opened}
    assert alarms(written, "m", found, 20) == []
    assert alarms(written, "n", [], 20) == []  # another model's
    (resolved,) = alarms(written, "m", [], 30)
    assert resolved.id == opened.id and resolved.resolved and states(resolved) == ["alarm", "resolved"]
    assert alarms({resolved.id: resolved}, "m", [], 40) == []
    (again,) = alarms({resolved.id: resolved}, "m", found, 50)
    assert again.id != opened.id


def test_alarms_leave_episodes_alone() -> None:
    (episode,) = tell(FALL).values()
    assert alarms({"m-0": episode.incident}, "m", [], 20) == []


# --- how far it has come ---


def told_by(*verdicts: Verdict) -> Incident:
    (episode,) = tell(*verdicts).values()
    return told(episode, {})


def test_the_stages_of_an_episode() -> None:
    assert stage(told_by(FALL)) is Stage.MITIGATED
    assert stage(told_by(FALL, TRY)) is Stage.MITIGATED, "in probation it has no traffic yet"
    assert stage(told_by(FALL, TRY, BACK)) is Stage.RESOLVED


def test_the_stages_of_an_alarm() -> None:
    (alarm,) = alarms({}, "m", [Finding(STALENESS, "silent", 5)], 10)
    assert stage(alarm) is Stage.OPEN
    seen = acknowledged(alarm, "kim", "on it", 20)
    assert stage(seen) is Stage.ACKNOWLEDGED
    assert seen.timeline[-1].reason == "kim: on it"
    (over,) = alarms({alarm.id: seen}, "m", [], 30)
    assert stage(over) is Stage.RESOLVED and ACKNOWLEDGED in states(over)


def test_what_was_acknowledged_stays_so_whoever_writes_next() -> None:
    before = told_by(FALL)
    seen = acknowledged(before, "kim", "", 15)
    after = folded(seen, told_by(FALL, TRY))  # by a supervisor that had not read it
    assert states(after) == ["detected", "quarantined", ACKNOWLEDGED, "probation"]
    assert folded(after, seen).timeline == seen.timeline
    assert folded(None, before) == before


def test_what_is_resolved_is_not_opened_by_a_late_acknowledgement() -> None:
    over = told_by(FALL, TRY, BACK)
    late = acknowledged(told_by(FALL), "kim", "", 40)
    after = folded(over, late)
    assert after.resolved and states(after) == [*states(over), ACKNOWLEDGED]
