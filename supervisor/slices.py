"""A model that is worse than what would stand in for it on one slice is barred from that slice alone. Pure.

It goes on learning from the slice's examples, and being compared over them: so it is given back what it has become
good at.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..models.routing import MAX_BARRED, Route
from ..topics.messages import SUPERVISOR, State, Verdict
from .lifecycle import HEALING, new_incident_id, same_line
from .policies import QUALITY, Finding, Health, Limits
from .policies.quality import Memories


def mend(
    route: Route, health: Health, findings: Sequence[Finding], limits: Limits, now: int
) -> Verdict | None:
    """The verdict on a slice that is due, if any. What an operator barred waits for an operator."""
    if route.state is not State.LIVE:
        return None
    found = {each.slice: each for each in findings if each.slice}
    new = next((each for name, each in found.items() if name not in route.barred), None)
    if new is not None and len(route.barred) < MAX_BARRED:
        evidence = {**new.evidence, "onset_ms": float(new.onset_ms)}
        verdict = same_line(route, State.QUARANTINED, new.reason, now, evidence=evidence)
        told = {"slice": new.slice, "policy": new.policy, "incident": new_incident_id(route)}
        return verdict.model_copy(update=told)
    compared = health.recall(QUALITY, Memories).slices
    for name, barred in route.barred.items():
        dwelt = now - barred.since_ms >= limits.min_dwell_ms
        if barred.by != SUPERVISOR or name in found or name not in compared or not dwelt:
            continue
        calm = compared[name].calm
        if calm >= limits.probation_examples:
            reason = f"not worse than the baseline where {name}, over the last {calm:.0f} labelled examples"
            verdict = same_line(route, route.state, reason, now, evidence={"examples": calm})
            return verdict.model_copy(update={"slice": name, "policy": HEALING, "incident": barred.incident})
    return None
