"""Incidents: what happened to a model, from detection to resolution, told from the verdicts.

Pure folds. An incident whose model loses its traffic is told from verdicts alone, so that any worker
tells the same; an alarm takes nothing out and lives on the incidents topic only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from ..topics.messages import Incident, IncidentStep, State, Verdict
from .lifecycle import IN_TRAFFIC, OPERATOR, Versions
from .policies import Finding

MAX_STEPS = 200  # of one timeline; the middle of a longer one tells nothing more

RESTORED = "restored"  # the first version of a line that started from a good version
RELEARNED = "relearned"  # the first version of a line that started from nothing
ALARM = "alarm"
RESOLVED = "resolved"  # the end of an alarm
ACKNOWLEDGED = "acknowledged"  # an operator has seen it
READMITTED = "re-admitted"
OUT = frozenset({State.QUARANTINED.value, State.PROBATION.value, State.DESTROYED.value})


class Stage(StrEnum):
    """How far an incident has come."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"  # an operator has seen it; the model still answers
    MITIGATED = "mitigated"  # the model has no traffic: others answer in its place
    RESOLVED = "resolved"


def stage(incident: Incident) -> Stage:
    if incident.resolved:
        return Stage.RESOLVED
    states = [step.state for step in incident.timeline]
    moved = next((s for s in reversed(states) if s in OUT or s == READMITTED), "")
    if moved in OUT:
        return Stage.MITIGATED
    return Stage.ACKNOWLEDGED if ACKNOWLEDGED in states else Stage.OPEN


def folded(known: Incident | None, read: Incident) -> Incident:
    """An incident as one more record of it tells it. The newest counts, but what an operator acknowledged stays
    so, and what is resolved: whoever wrote the record may not have known."""
    if known is None:
        return read
    told = known if known.resolved and not read.resolved else read
    seen = {step for step in (*known.timeline, *read.timeline) if step.state == ACKNOWLEDGED}
    missing = seen - set(told.timeline)
    if not missing:
        return told
    steps = tuple(sorted((*told.timeline, *missing), key=lambda s: s.at_ms))
    return told.model_copy(update={"timeline": steps})


def acknowledged(incident: Incident, by: str, note: str, now: int) -> Incident:
    step = IncidentStep(state=ACKNOWLEDGED, at_ms=now, reason=f"{by}: {note}" if note else by)
    return incident.model_copy(update={"timeline": (*incident.timeline, step)})


@dataclass(frozen=True)
class Episode:
    """An incident as the verdicts tell it, and the lines that it opened."""

    incident: Incident
    line: int
    opened: tuple[tuple[int, int, int], ...] = ()  # (line, restore, at_ms), oldest first


Episodes = Mapping[str, Episode]


def obey(episodes: Episodes, verdict: Verdict, previous_line: int) -> Episodes:
    """The episodes after one more verdict in force. `previous_line` is the model's line before it."""
    if not verdict.incident:
        return episodes
    episode = episodes.get(verdict.incident) or _begin(verdict, previous_line)
    opened = episode.opened
    if verdict.line > episode.line:
        opened = (*opened, (verdict.line, verdict.restore, verdict.at_ms))[-MAX_STEPS:]
    incident = episode.incident.model_copy(
        update={
            "timeline": _bounded((*episode.incident.timeline, *_steps(verdict))),
            "resolved": verdict.state in IN_TRAFFIC,
        }
    )
    told_on = replace(episode, incident=incident, line=verdict.line, opened=opened)
    return {**episodes, verdict.incident: told_on}


def _begin(verdict: Verdict, line: int) -> Episode:
    incident = Incident(
        id=verdict.incident,
        model=verdict.model,
        slice=verdict.slice,
        policy=verdict.policy,
        evidence=verdict.evidence,
    )
    return Episode(incident, line)


def _steps(verdict: Verdict) -> list[IncidentStep]:
    at = verdict.at_ms
    if verdict.state in IN_TRAFFIC:
        return [IncidentStep(state=READMITTED, at_ms=at, reason=verdict.reason)]
    step = IncidentStep(state=verdict.state.value, at_ms=at, reason=verdict.reason)
    if verdict.state is State.PROBATION or verdict.policy == OPERATOR:
        return [step]
    return [IncidentStep(state="detected", at_ms=at, reason=verdict.reason), step]


def _bounded(steps: tuple[IncidentStep, ...]) -> tuple[IncidentStep, ...]:
    if len(steps) <= MAX_STEPS:
        return steps
    return (*steps[: MAX_STEPS // 2], *steps[-MAX_STEPS // 2 :])


def told(episode: Episode, versions: Versions) -> Incident:
    """The incident with the first version of each line that it opened."""
    healed = [step for opened in episode.opened for step in _healed(*opened, versions)]
    order = sorted((*episode.incident.timeline, *healed), key=lambda s: s.at_ms)
    return episode.incident.model_copy(update={"timeline": tuple(order)})


def _healed(line: int, restore: int, at_ms: int, versions: Versions) -> list[IncidentStep]:
    own = [v for v in versions.values() if v.line == line]
    if not own:
        return []
    first = min(own, key=lambda v: v.version)
    source = f"version {restore}" if restore else "nothing"
    reason = f"version {first.version} of line {line}, from {source}"
    state = RESTORED if restore else RELEARNED
    # The learner's clock may be behind: healing never precedes the quarantine that asked for it.
    return [IncidentStep(state=state, at_ms=max(first.published_ms, at_ms), reason=reason)]


def alarms(known: Mapping[str, Incident], model: str, found: Sequence[Finding], now: int) -> list[Incident]:
    """What changes among a model's alarms: opened for a new finding, resolved where one is gone.

    `known` are incidents by id as read back. At most one alarm per model and policy is open.
    """
    opened = {i.policy: i for i in known.values() if i.model == model and is_open_alarm(i)}
    wrong = {f.policy: f for f in found}
    begun = [_alarm(model, f, now) for policy, f in wrong.items() if policy not in opened]
    return begun + [_resolve(i, now) for policy, i in opened.items() if policy not in wrong]


def is_open_alarm(incident: Incident) -> bool:
    return not incident.resolved and any(step.state == ALARM for step in incident.timeline)


def _alarm(model: str, finding: Finding, now: int) -> Incident:
    step = IncidentStep(state=ALARM, at_ms=now, reason=finding.reason)
    evidence = {**finding.evidence, "onset_ms": float(finding.onset_ms)}
    return Incident(
        id=f"{model}-{finding.policy}-{now}",
        model=model,
        policy=finding.policy,
        evidence=evidence,
        timeline=(step,),
    )


def _resolve(incident: Incident, now: int) -> Incident:
    step = IncidentStep(state=RESOLVED, at_ms=now, reason="no longer found")
    return incident.model_copy(update={"timeline": (*incident.timeline, step), "resolved": True})
