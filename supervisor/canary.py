"""The trial of a canary: a step further, back into the shadow, or into all of the traffic. Pure.

It is compared with what was served, over the examples that another model answered. The interval is one for all
sample sizes at once, for it is looked at several times a second: an asymptotic confidence sequence
(Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas 2024, "Time-uniform central limit theory and asymptotic
confidence sequences", theorem 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..models.canary import Canary
from ..models.routing import Route
from ..topics.messages import State, Verdict
from .lifecycle import Course, same_line
from .policies import QUALITY, Finding, Health
from .policies.quality import Memories
from .policies.sequential import DEPENDENCE, Block

CANARY = "canary"  # the policy of its verdicts
ALPHA = 0.05  # of all looks at one step together, to be wrong once


def steer(
    route: Route, course: Course, health: Health, findings: Sequence[Finding], canary: Canary, now: int
) -> Verdict | None:
    """The verdict that the trial asks for, if any. `findings` are those since the last verdict, none of them grave."""
    on_trial = route.state is State.CANARY
    if route.model != canary.model or not (on_trial or (route.state is State.SHADOW and not course.tried)):
        return None
    if on_trial and findings:
        found = findings[0]
        return _given(
            route, State.SHADOW, 0.0, f"rolled back: {found.policy}: {found.reason}", found.evidence, now
        )
    known = health.within(route.line, course.since_ms).recall(QUALITY, Memories)
    pairs = known.served
    if pairs.size < canary.examples:
        return None
    low, high = interval(pairs, canary.examples)
    other = known.served_error / pairs.size
    allowed = canary.tolerance * other
    evidence = {"examples": pairs.size, "difference": pairs.mean, "low": low, "high": high, "served": other}
    told = f"error {pairs.mean:+.4g} ({low:+.4g} to {high:+.4g}) beside {other:.4g}, over {pairs.size:.0f} examples"
    if on_trial and low > allowed:
        return _given(
            route, State.SHADOW, 0.0, f"rolled back: worse than what was served: {told}", evidence, now
        )
    if high > allowed:
        return None
    further = [step for step in canary.steps if step > route.share]
    if further:
        reason = f"{further[0]:.0%} of the keys: {told}"
        return _given(route, State.CANARY, further[0], reason, evidence, now)
    return _given(route, State.LIVE, 1.0, f"promoted: {told}", evidence, now)


def interval(differences: Block, planned: int) -> tuple[float, float]:
    """Of the mean, at all sample sizes at once; narrowest at `planned`."""
    least = -2 * math.log(ALPHA)
    rho2 = (least + math.log(least + 1)) / (planned / DEPENDENCE)
    n = differences.size / DEPENDENCE
    spread = n * rho2 + 1
    radius = math.sqrt(
        differences.variance * 2 * spread / (n * n * rho2) * math.log(math.sqrt(spread) / ALPHA)
    )
    return differences.mean - radius, differences.mean + radius


def _given(
    route: Route, state: State, share: float, reason: str, evidence: dict[str, float], now: int
) -> Verdict:
    verdict = same_line(route, state, reason, now, evidence=evidence)
    return verdict.model_copy(update={"share": share, "policy": CANARY, "incident": ""})
