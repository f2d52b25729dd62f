"""One vitals record of a model, folded into its health: counted once, then given to every policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from ...topics.messages import Vitals
from .health import WORST, Finding, Health, Mark, Policy, Tally
from .spans import advance, cover, starts, uncovered_share

MAX_VERSIONS = 32  # versions whose record is kept per model; the learner keeps fewer to restore from
MAX_MARKS = 64  # learn positions kept per line; older ones thin out by half

# Codes before the first ":" of `Vitals.gate` that say the version itself answers wrongly.
GATE_REFUSALS = frozenset({"out_of_bounds", "not_finite", "raises", "raised"})


def fold(health: Health, vitals: Vitals, policies: Sequence[Policy], now: int) -> Health:
    """The health after one more vitals record of the model; `now` in epoch ms.

    A record counts for the part of its spans that no earlier one covered; without spans a repeat
    cannot be told. A record of an earlier line counts for nothing, nor does one that began before the
    verdict in force for what policies remember.
    """
    if vitals.line < health.line or (health.model and vitals.agent not in ("score", "learn")):
        return health
    if vitals.line > health.line or not health.since_ms:
        health = _new_line(health, vitals, now)
    covered = health.covered.get(vitals.agent, ())
    share = uncovered_share(vitals.spans, covered)
    if share == 0.0:
        return health
    vitals = _sound(vitals if share == 1.0 else _part(vitals, share))
    health = replace(
        health,
        covered={**health.covered, vitals.agent: cover(covered, vitals.spans)},
        **(_scored(health, vitals) if vitals.agent == "score" else _learned(health, vitals, now)),
    )
    for policy in policies:
        health, _ = policy(health, vitals, now)
    return health


def look(health: Health, policies: Sequence[Policy], now: int) -> list[Finding]:
    """All that is to be said against the model now; empty if it is well."""
    return [finding for policy in policies for finding in policy(health, None, now)[1]]


def _new_line(health: Health, vitals: Vitals, now: int) -> Health:
    return Health(
        model=health.model,
        line=vitals.line,
        since_ms=min(vitals.from_ms, now),
        judged_ms=max(health.judged_ms, vitals.from_ms) if vitals.line > health.line else health.judged_ms,
        versions=health.versions,
        # A new line learns examples again that an earlier one has learned; facts never come again.
        covered={"score": health.covered.get("score", ())},
        memory=health.memory,
    )


def _part(vitals: Vitals, share: float) -> Vitals:
    """A record of which the rest was counted before. What was sampled says nothing of a part."""
    counted = ("asked", "warming", "served", "out_of_bounds", "raised", "learned", "labelled")
    summed = ("error", "baseline_error", "seconds")
    sampled = (
        "answers",
        "sketch",
        "errors",
        "baselines",
        "residuals",
        "golden",
        "slices",
        "products",
        "wrong",
        "against",
        "against_error",
    )
    fresh = Vitals(agent=vitals.agent, replica="", model="", from_ms=0, to_ms=0)
    return vitals.model_copy(
        update={
            **{name: round(getattr(vitals, name) * share) for name in counted},
            **{name: getattr(vitals, name) * share for name in summed},
            **{name: getattr(fresh, name) for name in sampled},
            "counts": {name: round(n * share) for name, n in vitals.counts.items()},
        }
    )


def _sound(vitals: Vitals) -> Vitals:
    """With the worst in place of errors that are no numbers."""
    errors = {"error": vitals.error, "baseline_error": vitals.baseline_error}
    wrong = {name: WORST for name, error in errors.items() if not math.isfinite(error)}
    return vitals.model_copy(update=wrong) if wrong else vitals


def _scored(health: Health, vitals: Vitals) -> dict[str, Any]:
    if vitals.warming:
        return {}
    refused = vitals.gate.split(":")[0].strip() in GATE_REFUSALS
    # A version that answered passed the gate: the refusal then concerns another one.
    bad = vitals.out_of_bounds + vitals.raised
    added = Tally(asked=vitals.asked, bad=bad, refused=refused and not vitals.asked)
    return {"versions": _tally(health.versions, vitals.version, added)}


def _learned(health: Health, vitals: Vitals, now: int) -> dict[str, Any]:
    update: dict[str, Any] = {}
    if vitals.spans and vitals.agent == "learn":
        update["learned"] = advance(health.learned, vitals.spans)
        update["marks"] = _mark(
            health.marks, min(vitals.from_ms, now), {**starts(vitals.spans), **health.learned}
        )
    if vitals.labelled:
        error, baseline = min(vitals.error, WORST), min(vitals.baseline_error, WORST)
        added = Tally(labelled=vitals.labelled, error=error, baseline=baseline)
        update["versions"] = _tally(health.versions, vitals.version, added)
    return update


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


def _mark(marks: tuple[Mark, ...], at_ms: int, offsets: dict[int, int]) -> tuple[Mark, ...]:
    if len(marks) >= MAX_MARKS:
        half = MAX_MARKS // 2
        marks = (*marks[:half:2], *marks[half:])
    return (*marks, Mark(at_ms, offsets))
