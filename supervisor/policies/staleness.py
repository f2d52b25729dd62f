"""A learner that is stuck, silent or failing, a version in use that is too old or went back, and facts from another hour."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ...topics.messages import Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import Block, Floor, Trail

STALENESS = "staleness"

# seconds by which the facts' age may stray: clocks and queues differ by minutes, time zones by half an hour
AGE = Floor(young=300.0, mature=120.0)


LEAST_FAILING = 100  # examples; fewer may be one odd batch


class Memories(Memory, frozen=True):
    back_ms: int = 0  # since when the version in use is far behind the newest; 0: it is not
    back: int = 0  # that version
    failing: int = 0  # examples in a row of windows in which most could not be learned
    failing_ms: int = 0
    ages: Trail = Trail()  # of facts: seconds from event time to append time

    def renewed(self, since_ms: int) -> Memory:
        return Memories(since_ms=since_ms, ages=self.ages.renewed())


def staleness(
    health: Health, vitals: Vitals | None, now: int, limits: Limits
) -> tuple[Health, list[Finding]]:
    if vitals is not None:
        return _seen(health, vitals, limits, now), []
    known = health.recall(STALENESS, Memories)
    found = [
        _silent(health, limits),
        _failing(known),
        _old(health, limits),
        _back(health, known),
        _aged(known, limits),
    ]
    return health, [f for f in found if f is not None]


def _seen(health: Health, vitals: Vitals, limits: Limits, now: int) -> Health:
    update: dict[str, Any] = {}
    known = health.recall(STALENESS, Memories)
    if vitals.agent == "learn" and vitals.learned:
        update["progress_ms"] = max(health.progress_ms, min(vitals.to_ms, now))
    if vitals.agent == "learn" and (vitals.learned or vitals.raised):
        failing = 2 * vitals.raised > vitals.learned
        known = replace(
            known,
            failing=known.failing + vitals.raised if failing else 0,
            failing_ms=(known.failing_ms or vitals.from_ms) if failing else 0,
        )
    if vitals.agent == "score" and vitals.asked:
        if vitals.version > health.version:
            update |= {"version": vitals.version, "version_ms": min(vitals.from_ms, now)}
        behind = max(health.version, vitals.version) - vitals.version > limits.max_versions_back
        began = (known.back_ms or vitals.from_ms) if behind else 0
        known = replace(known, back_ms=began, back=vitals.version)
    if vitals.agent == "score" and vitals.ages.count:
        a = vitals.ages
        block = Block(vitals.from_ms, vitals.to_ms, a.count, a.total, a.squares)
        ages = known.ages.after(block, AGE, limits.season_ms, limits.log_odds)
        known = replace(known, ages=ages)
    return replace(health, **update).remember(STALENESS, known)


def _silent(health: Health, limits: Limits) -> Finding | None:
    last = max(health.progress_ms, health.since_ms)
    silence = health.arriving_ms - last
    if not last or silence < limits.max_silence_ms:
        return None
    reason = f"nothing learned for {silence / 1000:.0f} s while examples arrive"
    return Finding(STALENESS, reason, last, {"silence_s": silence / 1000})


def _failing(known: Memories) -> Finding | None:
    if known.failing < LEAST_FAILING:
        return None
    reason = f"the estimator raised at most of the examples, {known.failing} by now"
    return Finding(STALENESS, reason, known.failing_ms, {"raised": float(known.failing)})


def _old(health: Health, limits: Limits) -> Finding | None:
    age = health.arriving_ms - health.version_ms
    if not health.version_ms or age < limits.max_staleness_ms:
        return None
    reason = f"version {health.version} is in use for {age / 1000:.0f} s while examples arrive"
    return Finding(
        STALENESS, reason, health.version_ms, {"age_s": age / 1000, "version": float(health.version)}
    )


def _back(health: Health, known: Memories) -> Finding | None:
    if not known.back_ms:
        return None
    reason = f"version {known.back} answers, though {health.version} did before"
    evidence = {"version": float(known.back), "newest": float(health.version)}
    return Finding(STALENESS, reason, known.back_ms, evidence)


def _aged(known: Memories, limits: Limits) -> Finding | None:
    for evidence in (known.ages.up, known.ages.down):
        since_ms = evidence.against(limits.log_odds)
        if since_ms is not None:
            age, usual = known.ages.last, known.ages.mean
            reason = f"facts are {age:.0f} s old when they arrive; they used to be {usual:.0f} s: a clock, or a zone"
            return Finding(STALENESS, reason, since_ms, {"age_s": age, "usual_s": usual})
    return None
