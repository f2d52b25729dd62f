"""From findings to verdicts: when a model loses its traffic, how it heals, when it gets it back.

Pure. A grave finding takes a model out; any other only raises an alarm, for a version that is, say, too old
is not mended by an older one. Every verdict on a line carries the line's `restore` and `skip`,
since a route is replaced whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..models.routing import Route, Routing
from ..topics.messages import SUPERVISOR, Manifest, Span, State, Verdict
from .policies import Finding, Health, Limits, Tally, merge, worse

OPERATOR = "operator"  # the policy of a verdict by hand
HEALING = "healing"  # the policy of a verdict that leads a model back

NEVER = -1  # ms: before all that was learned

IN_TRAFFIC = frozenset({State.LIVE, State.CANARY, State.SHADOW})


@dataclass(frozen=True)
class KnownVersion:
    """What the judgement needs of a manifest. `kept`: its bytes are still on the log."""

    version: int
    line: int
    parent: int
    offsets: Mapping[int, int]
    published_ms: int
    kept: bool = True

    @classmethod
    def of(cls, manifest: Manifest) -> KnownVersion:
        m = manifest
        return cls(m.version, m.line, m.parent, m.offsets, m.published_ms)


Versions = Mapping[int, KnownVersion]


@dataclass(frozen=True)
class Course:
    """What a model's obeyed verdicts say beyond its route."""

    resting: State  # the last state in traffic: where re-admission leads
    since_ms: int = 0  # when the verdict in force was given
    by: str = SUPERVISOR
    falls: tuple[int, ...] = ()  # when the supervisor took it out, since an operator last decided
    on_trial: bool = False  # it has a share of the keys by verdict
    tried: bool = False  # a supervisor ended its trial; an operator's next verdict opens it again

    def after(self, verdict: Verdict, limits: Limits) -> Course:
        """The course once the verdict is obeyed. One on a slice leaves it as it is."""
        if verdict.slice:
            return self
        resting = verdict.state if verdict.state in IN_TRAFFIC else self.resting
        if verdict.share:
            resting = State.SHADOW  # what was on trial begins where it began
        ended = (self.on_trial or self.tried) and not verdict.share
        tried = ended and verdict.by == SUPERVISOR
        return Course(
            resting, verdict.at_ms, verdict.by, self._falls(verdict, limits), verdict.share > 0, tried
        )

    def _falls(self, verdict: Verdict, limits: Limits) -> tuple[int, ...]:
        if verdict.by != SUPERVISOR:
            return ()
        if verdict.state not in (State.QUARANTINED, State.DESTROYED):
            return self.falls
        recent = [t for t in self.falls if t > verdict.at_ms - limits.relapse_ms]
        return (*recent, verdict.at_ms)[-limits.max_relapses - 1 :]

    def relapses(self, now: int, limits: Limits) -> int:
        """Falls within the last `relapse_ms` that followed an earlier one."""
        return max(0, sum(t > now - limits.relapse_ms for t in self.falls) - 1)

    def dwell_ms(self, limits: Limits) -> int:
        """How long quarantine lasts at least; doubles with each relapse."""
        doubled: int = limits.min_dwell_ms * 2 ** self.relapses(self.since_ms, limits)
        return min(doubled, limits.max_dwell_ms)


def decide(
    route: Route,
    course: Course,
    health: Health,
    findings: Sequence[Finding],
    versions: Versions,
    limits: Limits,
    now: int,
    *,
    fallback: bool = False,
) -> Verdict | None:
    """The verdict that is due, if any. `health` is whole; `findings` are those since the last verdict.

    The fallback model is never taken out: nothing better answers in its place, and the constant
    stands in for each of its bad answers. What an operator quarantined, and what is destroyed,
    waits for an operator.
    """
    grave = next((f for f in findings if f.grave), None)
    if route.state is State.QUARANTINED and course.by == SUPERVISOR:
        return _try(route, course, versions, limits, now)
    if route.state not in {*IN_TRAFFIC, State.PROBATION}:
        return None
    if grave is not None and not fallback:
        return _take_out(route, course, health, grave, versions, limits, now)
    if route.state is State.PROBATION and grave is None:
        return _readmit(route, course, health, limits, now)
    return None


def _try(route: Route, course: Course, versions: Versions, limits: Limits, now: int) -> Verdict | None:
    healed = [v for v in versions.values() if v.line == route.line]
    if not healed or now - course.since_ms < course.dwell_ms(limits):
        return None
    newest = max(healed, key=lambda v: v.version)
    reason = f"version {newest.version} of line {route.line} is there; it answers in shadow"
    return same_line(route, State.PROBATION, reason, now, evidence={"version": float(newest.version)})


def _readmit(route: Route, course: Course, health: Health, limits: Limits, now: int) -> Verdict | None:
    fresh = health.within(route.line, course.since_ms)
    answers = sum(a.size for a in fresh.answers)
    examples = sum(e.size for e in fresh.examples)
    error, baseline = sum(e.error for e in fresh.examples), sum(e.baseline for e in fresh.examples)
    if answers < limits.probation_answers or examples < limits.probation_examples:
        return None
    if worse(error, baseline, limits.margin):
        return None
    evidence = {
        "answers": float(answers),
        "examples": float(examples),
        "error": error / examples,
        "baseline": baseline / examples,
    }
    reason = f"{answers} clean answers, {examples} labelled examples within the margin"
    return same_line(route, course.resting, reason, now, evidence=evidence)


def same_line(route: Route, state: State, reason: str, now: int, *, evidence: dict[str, float]) -> Verdict:
    return Verdict(
        model=route.model,
        state=state,
        follows=route.offset,
        line=route.line,
        restore=route.restore,
        skip=route.skip,
        policy=HEALING,
        reason=reason,
        evidence=evidence,
        by=SUPERVISOR,
        incident=route.incident,
        at_ms=now,
    )


def _take_out(
    route: Route,
    course: Course,
    health: Health,
    finding: Finding,
    versions: Versions,
    limits: Limits,
    now: int,
) -> Verdict:
    relapses = len([t for t in course.falls if t > now - limits.relapse_ms])
    good = last_good(route, health, versions, limits, finding.onset_ms, relapses)
    given_up = relapses >= limits.max_relapses
    reason = finding.reason
    if given_up:
        reason += f"; relapse {relapses} within {limits.relapse_ms // 60_000} min: an operator decides"
    return Verdict(
        model=route.model,
        state=State.DESTROYED if given_up else State.QUARANTINED,
        follows=route.offset,
        line=route.line + 1,
        restore=good.version if good else 0,
        skip=skipped(route, health, versions, good, NEVER if relapses else finding.onset_ms),
        policy=finding.policy,
        reason=reason,
        evidence={**finding.evidence, "onset_ms": float(finding.onset_ms), "relapses": float(relapses)},
        by=SUPERVISOR,
        incident=incident_id(route),
        at_ms=now,
    )


def incident_id(route: Route) -> str:
    """Of the episode that a verdict following this route belongs to; unique for each obeyed one."""
    if route.incident and route.state not in IN_TRAFFIC:
        return route.incident
    return new_incident_id(route)


def new_incident_id(route: Route) -> str:
    """Of an episode that a verdict following this route begins, beside whatever else happens to the model."""
    return f"{route.model}-{route.offset + 1}"


# --- where to go back to ----------------------------------------------------------------------


def last_good(
    route: Route, health: Health, versions: Versions, limits: Limits, onset_ms: int, relapses: int = 0
) -> KnownVersion | None:
    """The newest ancestor published before the onset that answered, and answered well; None to begin anew.

    A line that went wrong before it brought forth a good version discredits the one it started
    from: then only what is older than that counts. A relapse says more: the fault was there before it
    showed, and what looked well may carry it. How far back it lies nobody knows, so each relapse passes over
    twice as many good ones as the one before, down to the oldest.
    """
    own = [v for v in versions.values() if v.line == route.line]
    candidates = sorted(own, key=lambda v: -v.version) + _ancestors(route.restore, versions)
    good = [
        v
        for v in candidates
        if v.kept and v.published_ms <= onset_ms and _good(health.versions.get(v.version, Tally()), limits)
    ]
    return good[min(2**relapses, len(good)) - 1] if good else None


def _ancestors(restore: int, versions: Versions) -> list[KnownVersion]:
    """Those before `restore`, newest first, along the parents: not those of abandoned lines."""
    chain: list[KnownVersion] = []
    at = versions.get(restore)
    while at is not None and at.parent < at.version:
        at = versions.get(at.parent)
        if at is not None:
            chain.append(at)
    return chain


def _good(tally: Tally, limits: Limits) -> bool:
    if not tally.asked or tally.refused or tally.bad > limits.out_share * tally.asked:
        return False
    judged = tally.labelled >= limits.probation_examples
    return not (judged and worse(tally.error, tally.baseline, limits.margin))


def skipped(
    route: Route, health: Health, versions: Versions, good: KnownVersion | None, onset_ms: int
) -> tuple[Span, ...]:
    """The examples the next line must not learn: from the good version, or the onset, up to now.

    What has relapsed with no good version left learns none of them again: the cause is among them.
    What the route skips already stays skipped unless the good version lies beyond it.
    """
    own = [v for v in versions.values() if v.line == route.line]
    learned = _latest([*[v.offsets for v in own], _learned(route, health)])
    start = dict(good.offsets) if good else _offsets_at(route, health, own, onset_ms)
    new = [Span(p, start.get(p, 0), end) for p, end in learned.items()]
    floor = good.offsets if good else {}
    old = [Span(s.partition, max(s.start, floor.get(s.partition, 0)), s.end) for s in route.skip]
    return merge([*new, *old])


def _learned(route: Route, health: Health) -> Mapping[int, int]:
    return health.learned if health.line == route.line else {}


def _latest(offsets: Iterable[Mapping[int, int]]) -> dict[int, int]:
    latest: dict[int, int] = {}
    for known in offsets:
        for partition, offset in known.items():
            latest[partition] = max(latest.get(partition, 0), offset)
    return latest


def _offsets_at(route: Route, health: Health, own: Sequence[KnownVersion], at_ms: int) -> dict[int, int]:
    """The next examples to learn at a moment, as far as known; a later start would keep bad ones."""
    marks = [m for m in health.marks if m.at_ms <= at_ms] if health.line == route.line else []
    published = [v.offsets for v in own if v.published_ms <= at_ms]
    return _latest([*published, *[m.offsets for m in marks]])


# --- by hand ----------------------------------------------------------------------------------


def operator_verdict(
    routing: Routing, model: str, state: State, reason: str, now: int, by: str, of_slice: str = ""
) -> Verdict:
    """An operator's decision on a model as it stands. Raises KeyError for an undeclared model.

    The line stays: an operator moves traffic and does not say what to unlearn. A quarantine by an
    operator holds until an operator admits; admitted to PROBATION, the supervisor leads it back. With `of_slice`,
    "name=value", only the facts that show it are taken or given back. `by` must not be "supervisor".
    """
    if by == SUPERVISOR:
        raise ValueError(f"{model}: an operator's verdict cannot be by {SUPERVISOR!r}")
    route = routing.routes[model]
    if of_slice:
        barred = route.barred.get(of_slice)
        incident = barred.incident if barred else new_incident_id(route)
        state = State.QUARANTINED if state is State.QUARANTINED else route.state
    else:
        begins = state not in IN_TRAFFIC or route.state not in IN_TRAFFIC
        incident = incident_id(route) if begins else ""
    verdict = same_line(route, state, reason, now, evidence={})
    told = {"policy": OPERATOR, "by": by, "incident": incident, "slice": of_slice}
    return verdict.model_copy(update=told)


@dataclass(frozen=True)
class Book:
    """Routing and courses, folded together from the verdicts as read back."""

    routing: Routing
    courses: Mapping[str, Course]

    @classmethod
    def declared(cls, models: Iterable[str], live: Iterable[str]) -> Book:
        routing = Routing.declared(models, live)
        return cls(routing, {m: Course(r.state) for m, r in routing.routes.items()})

    def obey(self, offset: int, verdict: Verdict, limits: Limits) -> Book:
        routing = self.routing.obey(offset, verdict)
        if not obeyed(routing, offset, verdict):
            return replace(self, routing=routing)
        course = self.courses[verdict.model].after(verdict, limits)
        return Book(routing, {**self.courses, verdict.model: course})


def obeyed(routing: Routing, offset: int, verdict: Verdict) -> bool:
    """Whether the fold that read this verdict at this offset put it in force."""
    route = routing.routes.get(verdict.model)
    return route is not None and route.offset == offset
