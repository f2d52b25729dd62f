"""What is wrong with a model: its health, folded from vitals, and the policies that judge it.

Pure: time is an argument, and health is JSON, so that it can live in a table and be replayed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, TypeVar

from pydantic import Field

from ..topics.messages import ControlRecord, Span, Vitals

BOUNDS = "bounds"
QUALITY = "quality"
STALENESS = "staleness"

# Codes before the first ":" of `Vitals.gate` that say the version itself answers wrongly.
GATE_REFUSALS = frozenset({"out_of_bounds", "not_finite", "raises", "raised"})

HEALTH_GRAINS = 32  # least entries a full window is kept in; finer only makes the record larger
MAX_ENTRIES = 96  # of a window: neighbours hold a grain together, so that 64 do unless versions rush
MAX_VERSIONS = 32  # versions whose record is kept per model; the learner keeps fewer to restore from
MAX_MARKS = 64  # learn positions kept per line; older ones thin out by half
MAX_GAPS = 16  # separate covered ranges kept per partition; vitals arrive late by a few windows at most
WORST = 1e300  # stands for an error that is not finite: JSON and sums can carry it


@dataclass(frozen=True)
class Limits:
    """Every threshold of the judgement, with its unit."""

    # bounds
    out_share: float = 0.01  # of answers; a sound model's rare extremes stay below
    min_answers: int = 200  # answers; fewer cannot show a share of 1 %
    out_burst: float = 0.5  # of answers; plainly broken, so that fewer answers suffice
    min_burst: int = 20  # answers; one odd batch of a slow pipeline is smaller
    window_answers: int = 1_000  # answers judged at a time: 1 s at 1 000/s, 17 min at 1/s
    # quality
    margin: float = 0.10  # how much worse than the baseline, relative; declared by the pipeline
    min_examples: int = 500  # paired examples; below, noise of heavy-tailed errors exceeds the margin
    window_examples: int = 1_000  # paired examples judged at a time
    window_ms: int = 86_400_000  # a day: nobody waits longer for a finding, and yesterday's is no news
    # staleness
    max_silence_ms: int = 300_000  # of arriving examples without learning: a learner restarts in seconds
    max_staleness_ms: int = 3_600_000  # of arriving examples without a new version in use
    trouble_ms: int = (
        15_000  # without a word of a stopped partition, which vitals tell every second: it goes on
    )
    # healing
    min_dwell_ms: int = 2_000  # in quarantine: every replica has obeyed (1 s) and reported (1 s)
    max_dwell_ms: int = 600_000  # in quarantine, however often it relapsed: ten minutes
    probation_answers: int = 500  # clean answers before re-admission; five would already be 1 %
    probation_examples: int = 200  # paired examples before re-admission
    max_relapses: int = 5  # within `relapse_ms`; then an operator decides
    relapse_ms: int = 3_600_000  # an hour: five healings in it have taught nothing


class Answers(NamedTuple):
    """Answers of one version in one stretch of time; `bad` are out of bounds, not finite or raised."""

    from_ms: int
    to_ms: int
    version: int
    size: int
    bad: int

    def plus(self, later: Answers) -> Answers:
        first, last = min(self.from_ms, later.from_ms), max(self.to_ms, later.to_ms)
        return Answers(first, last, later.version, self.size + later.size, self.bad + later.bad)


class Examples(NamedTuple):
    """Labelled examples in one stretch of time; both errors are sums over the same examples."""

    from_ms: int
    to_ms: int
    version: int
    size: int
    error: float
    baseline: float

    def plus(self, later: Examples) -> Examples:
        first, last = min(self.from_ms, later.from_ms), max(self.to_ms, later.to_ms)
        error, baseline = self.error + later.error, self.baseline + later.baseline
        return Examples(first, last, later.version, self.size + later.size, error, baseline)


E = TypeVar("E", Answers, Examples)


class Mark(NamedTuple):
    """From when on examples at and above `offsets` (by partition) were learned."""

    at_ms: int
    offsets: dict[int, int]


class Tally(ControlRecord):
    """All that is known of one version's answers and errors."""

    asked: int = 0
    bad: int = 0
    labelled: int = 0
    error: float = 0.0
    baseline: float = 0.0
    refused: bool = False


class Refusal(NamedTuple):
    at_ms: int
    version: int
    reason: str


class Health(ControlRecord):
    """What is known of one model. Windows hold the evidence of the current line only."""

    model: str
    line: int = 0
    since_ms: int = 0  # when the line was first seen
    answers: tuple[Answers, ...] = ()
    examples: tuple[Examples, ...] = ()
    refusal: Refusal | None = None
    versions: dict[int, Tally] = Field(default_factory=dict)  # of every line
    learned: dict[int, int] = Field(default_factory=dict)  # partition of examples → next one to learn
    marks: tuple[Mark, ...] = ()
    covered: dict[str, tuple[Span, ...]] = Field(default_factory=dict)  # agent → spans counted
    progress_ms: int = 0  # when it last learned
    version: int = 0  # the newest one asked
    version_ms: int = 0  # when that one was first asked

    def within(self, line: int, since_ms: int) -> Health:
        """The evidence that a line gave since a moment; nothing if it is another line's health."""
        if line != self.line:
            return Health(model=self.model, line=line, since_ms=since_ms, versions=self.versions)
        refusal = self.refusal if self.refusal and self.refusal.at_ms >= since_ms else None
        return self.model_copy(
            update={
                "since_ms": max(since_ms, self.since_ms),
                "answers": tuple(a for a in self.answers if a.from_ms >= since_ms),
                "examples": tuple(e for e in self.examples if e.from_ms >= since_ms),
                "refusal": refusal,
            }
        )


@dataclass(frozen=True)
class Finding:
    """One policy's objection to one model. `onset_ms` is when the trouble began."""

    policy: str
    reason: str
    onset_ms: int
    evidence: dict[str, float] = field(default_factory=dict)


# --- the fold ---------------------------------------------------------------------------------


def policy(health: Health, vitals: Vitals, limits: Limits, now: int) -> Health:
    """The health after one more vitals record of the model; `now` in epoch ms.

    A record counts for the part of its spans that no earlier one covered; without spans a repeat
    cannot be told. A record of an earlier line counts for nothing.
    """
    if vitals.line < health.line or vitals.agent not in ("score", "learn"):
        return health
    if vitals.line > health.line or not health.since_ms:
        health = _new_line(health, vitals, now)
    covered = health.covered.get(vitals.agent, ())
    share = _uncovered_share(vitals.spans, covered)
    if share == 0.0:
        return health
    covers = {**health.covered, vitals.agent: cover(covered, vitals.spans)}
    health = health.model_copy(update={"covered": covers})
    if vitals.agent == "score":
        return _scored(health, vitals, share, limits, now)
    return _learned(health, vitals, share, limits, now)


def _new_line(health: Health, vitals: Vitals, now: int) -> Health:
    return Health(
        model=health.model,
        line=vitals.line,
        since_ms=min(vitals.from_ms, now),
        versions=health.versions,
        # A new line learns examples again that an earlier one has learned; facts never come again.
        covered={"score": health.covered.get("score", ())},
    )


def _scored(health: Health, vitals: Vitals, share: float, limits: Limits, now: int) -> Health:
    asked = round(vitals.asked * share)
    bad = round((vitals.out_of_bounds + vitals.raised) * share)
    refused = vitals.gate.split(":")[0].strip() in GATE_REFUSALS
    update: dict[str, object] = {}
    if asked:
        entry = Answers(vitals.from_ms, min(vitals.to_ms, now), vitals.version, asked, bad)
        window = _push(health.answers, entry, limits.window_answers)
        update["answers"] = _trim(window, limits.window_answers, limits, now)
    if refused and (health.refusal is None or health.refusal.version != vitals.version):
        update["refusal"] = Refusal(min(vitals.to_ms, now), vitals.version, vitals.gate)
    if asked and vitals.version > health.version:
        update |= {"version": vitals.version, "version_ms": min(vitals.from_ms, now)}
    # A version that answered passed the gate: the refusal then concerns another one.
    added = Tally(asked=asked, bad=bad, refused=refused and not vitals.asked)
    update["versions"] = versions = _tally(health.versions, vitals.version, added)
    if _outlived(health.refusal, vitals.version, versions, limits):
        update["refusal"] = None
    return health.model_copy(update=update)


def _outlived(refusal: Refusal | None, version: int, versions: Mapping[int, Tally], limits: Limits) -> bool:
    """Whether a later version passed the gate and has answered long enough to count: what the gate
    refused of a model that stayed in use, as the fallback does, is then over."""
    return refusal is not None and version > refusal.version and versions[version].asked >= limits.min_answers


def _learned(health: Health, vitals: Vitals, share: float, limits: Limits, now: int) -> Health:
    update: dict[str, object] = {"learned": dict(health.learned)}
    if vitals.spans:
        update["learned"] = _advance(health.learned, vitals.spans)
        before = {**_starts(vitals.spans), **health.learned}
        update["marks"] = _mark(health.marks, min(vitals.from_ms, now), before)
    if vitals.learned:
        update["progress_ms"] = max(health.progress_ms, min(vitals.to_ms, now))
    labelled = round(vitals.labelled * share)
    if labelled:
        error, baseline = _finite(vitals.error) * share, _finite(vitals.baseline_error) * share
        entry = Examples(vitals.from_ms, min(vitals.to_ms, now), vitals.version, labelled, error, baseline)
        window = _push(health.examples, entry, limits.window_examples)
        update["examples"] = _trim(window, limits.window_examples, limits, now)
        added = Tally(labelled=labelled, error=error, baseline=baseline)
        update["versions"] = _tally(health.versions, vitals.version, added)
    return health.model_copy(update=update)


def _finite(error: float) -> float:
    return min(error, WORST) if math.isfinite(error) else WORST


def _push(entries: tuple[E, ...], new: E, window: int) -> tuple[E, ...]:
    """With `new` at the end; small neighbours of one version become one entry."""
    last = entries[-1] if entries else None
    if last is None or last.version != new.version or last.size + new.size > window // HEALTH_GRAINS:
        return entries + (new,)
    return entries[:-1] + (last.plus(new),)


def _trim(entries: tuple[E, ...], window: int, limits: Limits, now: int) -> tuple[E, ...]:
    """The newest entries that hold the window, none older than `window_ms`, of bounded number."""
    recent = [e for e in entries if e.to_ms >= now - limits.window_ms][-MAX_ENTRIES:]
    total = sum(e.size for e in recent)
    first = 0
    while first < len(recent) - 1 and total - recent[first].size >= window:
        total -= recent[first].size
        first += 1
    return tuple(recent[first:])


def _tally(tallies: dict[int, Tally], version: int, added: Tally) -> dict[int, Tally]:
    known = tallies.get(version, Tally())
    total = Tally(
        asked=known.asked + added.asked,
        bad=known.bad + added.bad,
        labelled=known.labelled + added.labelled,
        error=min(known.error + added.error, WORST),
        baseline=min(known.baseline + added.baseline, WORST),
        refused=known.refused or added.refused,
    )
    newest = sorted({*tallies, version})[-MAX_VERSIONS:]
    return {v: total if v == version else tallies[v] for v in newest}


# --- spans ------------------------------------------------------------------------------------


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same offsets in the fewest spans, in order; empty ones vanish."""
    merged: list[Span] = []
    for span in sorted(Span(*s) for s in spans):
        if span.end <= span.start:
            continue
        if merged and merged[-1].partition == span.partition and span.start <= merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return tuple(merged)


def cover(covered: Sequence[Span], spans: Sequence[Span]) -> tuple[Span, ...]:
    """All of both; beyond MAX_GAPS ranges of a partition the oldest gaps count as covered."""
    merged = merge([*covered, *spans])
    kept: list[Span] = []
    for p in dict.fromkeys(s.partition for s in merged):
        ranges = [s for s in merged if s.partition == p]
        excess = max(0, len(ranges) - MAX_GAPS)
        kept += [Span(p, ranges[0].start, ranges[excess].end), *ranges[excess + 1 :]]
    return tuple(kept)


def _uncovered_share(spans: Sequence[Span], covered: Sequence[Span]) -> float:
    own = merge(spans)
    total = sum(s.end - s.start for s in own)
    if not total:
        return 1.0
    known = sum(
        max(0, min(s.end, c.end) - max(s.start, c.start))
        for s in own
        for c in covered
        if c.partition == s.partition
    )
    return (total - known) / total


def _starts(spans: Sequence[Span]) -> dict[int, int]:
    return {s.partition: s.start for s in reversed(merge(spans))}


def _advance(learned: dict[int, int], spans: Sequence[Span]) -> dict[int, int]:
    ends = {s.partition: s.end for s in merge(spans)}
    return {p: max(learned.get(p, 0), ends.get(p, 0)) for p in sorted({*learned, *ends})}


def _mark(marks: tuple[Mark, ...], at_ms: int, offsets: dict[int, int]) -> tuple[Mark, ...]:
    if len(marks) >= MAX_MARKS:
        half = MAX_MARKS // 2
        marks = (*marks[:half:2], *marks[half:])
    return (*marks, Mark(at_ms, offsets))


# --- the policies -----------------------------------------------------------------------------


def findings(health: Health, limits: Limits, now: int, *, arriving_ms: int = 0) -> list[Finding]:
    """All that is to be said against the model now; empty if it is well.

    `arriving_ms` is when an example was last seen to arrive, for whichever model (0: never).
    """
    found = (
        _bounds(health, limits, now),
        _refused(health),
        _quality(health, limits, now),
        _silent(health, limits, arriving_ms),
        _old(health, limits, arriving_ms),
    )
    return [f for f in found if f is not None]


def worse(error: float, baseline: float, margin: float) -> bool:
    return not error <= baseline * (1 + margin)


def _bounds(health: Health, limits: Limits, now: int) -> Finding | None:
    entries = [a for a in health.answers if a.to_ms >= now - limits.window_ms]
    asked, bad = sum(a.size for a in entries), sum(a.bad for a in entries)
    burst = _burst(entries, limits)
    if not burst and (asked < limits.min_answers or bad <= limits.out_share * asked):
        return None
    seen, wrong = burst or (asked, bad)
    onset = _onset([a.bad - limits.out_share * a.size for a in entries])
    return Finding(
        BOUNDS,
        f"{wrong} of the last {seen} answers out of bounds, not finite or raised",
        entries[onset].from_ms,
        {"answers": float(seen), "bad": float(wrong), "share": wrong / seen},
    )


def _burst(entries: Sequence[Answers], limits: Limits) -> tuple[int, int] | None:
    """(answers, bad) of the shortest latest run that is bad enough by itself."""
    counts = accumulate(a.size for a in reversed(entries))
    bads = accumulate(a.bad for a in reversed(entries))
    for asked, bad in zip(counts, bads, strict=True):
        if asked >= limits.min_burst and bad >= limits.out_burst * asked:
            return asked, bad
    return None


def _refused(health: Health) -> Finding | None:
    if health.refusal is None:
        return None
    at_ms, version, reason = health.refusal
    return Finding(
        BOUNDS, f"the gate refused version {version}: {reason}", at_ms, {"version": float(version)}
    )


def _quality(health: Health, limits: Limits, now: int) -> Finding | None:
    entries = [e for e in health.examples if e.to_ms >= now - limits.window_ms]
    labelled = sum(e.size for e in entries)
    error, baseline = sum(e.error for e in entries), sum(e.baseline for e in entries)
    if labelled < limits.min_examples or not worse(error, baseline, limits.margin):
        return None
    onset = _onset([e.error - e.baseline * (1 + limits.margin) for e in entries])
    mean, reference = error / labelled, baseline / labelled
    return Finding(
        QUALITY,
        f"error {mean:.4g} against the baseline's {reference:.4g} over the last {labelled} labelled examples",
        entries[onset].from_ms,
        {"examples": float(labelled), "error": mean, "baseline": reference, "margin": limits.margin},
    )


def _silent(health: Health, limits: Limits, arriving_ms: int) -> Finding | None:
    last = max(health.progress_ms, health.since_ms)
    silence = arriving_ms - last
    if not last or silence < limits.max_silence_ms:
        return None
    reason = f"nothing learned for {silence / 1000:.0f} s while examples arrive"
    return Finding(STALENESS, reason, last, {"silence_s": silence / 1000})


def _old(health: Health, limits: Limits, arriving_ms: int) -> Finding | None:
    age = arriving_ms - health.version_ms
    if not health.version_ms or age < limits.max_staleness_ms:
        return None
    reason = f"version {health.version} is in use for {age / 1000:.0f} s while examples arrive"
    return Finding(
        STALENESS, reason, health.version_ms, {"age_s": age / 1000, "version": float(health.version)}
    )


def _onset(excesses: Sequence[float]) -> int:
    """Where the run up to now begins whose excess is largest: the likeliest point of change."""
    sums = list(accumulate(reversed(excesses)))
    largest = max(range(len(sums)), key=sums.__getitem__)
    return len(sums) - 1 - largest
