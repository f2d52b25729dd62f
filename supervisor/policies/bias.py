"""What came true minus what was answered, overall and by slice: off its own history, or off zero for a season.

A baseline that knows no hours is off by hours, and one that knows no regions by regions; that it always was is
no news. What is off by more than ever, or by much over a whole season, is.
"""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from ...topics.messages import Moments, Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import Block, Floor, Trail

BIAS = "bias"
ALL = ""  # stands for every slice together
MAX_SLICES = 16  # judged by themselves, those that came first
# In units of `max_bias` standard deviations of the residuals: what comes for the first time is learned.
YOUNG, MATURE = 2.0, 0.5
LEAST_BLOCKS = 50  # of history behind what is said of a season
FADING = 0.05  # of a block, in the usual standard deviation


class Residuals(msgspec.Struct, frozen=True, array_like=True, gc=False):
    sd: float = 0.0  # the usual one of single residuals
    unit: float = 0.0  # the bias that is allowed
    trail: Trail = Trail()

    def after(self, new: Block, scale: float, limits: Limits) -> Residuals:
        """`scale` is the baseline's error: what is small beside it is no bias that anybody would mind."""
        if new.size < 2:
            return self
        sd = math.sqrt(new.variance)
        usual = self.sd + FADING * (min(sd, 3 * self.sd) - self.sd) if self.sd else sd
        unit = max(limits.max_bias * usual, limits.margin * scale)
        floor = Floor(young=YOUNG * unit, mature=MATURE * unit)
        trail = self.trail.after(new, floor, limits.season_ms, limits.log_odds)
        return Residuals(usual, unit, trail)


class Memories(Memory, frozen=True):
    parts: dict[str, Residuals] = {}

    def renewed(self, since_ms: int) -> Memory:
        kept = {n: replace(r, trail=r.trail.renewed()) for n, r in self.parts.items()}
        return Memories(since_ms=since_ms, parts=kept)


def bias(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(BIAS, Memories)
    if vitals is not None and vitals.agent == "learn" and vitals.residuals.count:
        known = _seen(known, vitals, limits)
        health = health.remember(BIAS, known)
    if vitals is not None:
        return health, []
    found = [f for name, each in known.parts.items() for f in _found(name, each, now, limits)]
    return health, found[:1]


def _seen(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    parts = dict(known.parts)
    told: dict[str, Moments] = {ALL: vitals.residuals}
    told |= {name: each.residuals for name, each in vitals.slices.items() if each.residuals.count}
    base = vitals.baselines
    scale = base.total / base.count if base.count else 0.0
    for name, m in told.items():
        if name in parts or len(parts) <= MAX_SLICES:
            block = Block(vitals.from_ms, vitals.to_ms, m.count, m.total, m.squares)
            parts[name] = parts.get(name, Residuals()).after(block, scale, limits)
    return replace(known, parts=parts)


def _found(name: str, each: Residuals, now: int, limits: Limits) -> list[Finding]:
    where = f" where {name}" if name else ""
    for evidence in (each.trail.up, each.trail.down):
        since_ms = evidence.against(limits.log_odds)
        if since_ms is not None:
            last, usual = each.trail.last, each.trail.mean
            reason = f"labels lie {last:+.4g} from the answers{where}; they used to lie {usual:+.4g}"
            return [Finding(BIAS, reason, since_ms, {"bias": last, "usual": usual, "sd": each.sd})]
    return [] if name else _always(each, now, limits)


def _always(each: Residuals, now: int, limits: Limits) -> list[Finding]:
    """Off over a whole season: overall only, for a model may have no feature that tells a slice."""
    trail = each.trail
    whole = trail.since_ms and now - trail.since_ms > limits.season_ms
    both = min(trail.mean * math.copysign(1.0, trail.last), abs(trail.last))  # of one sign, now and all along
    if not whole or trail.blocks < LEAST_BLOCKS or both <= each.unit:
        return []
    reason = f"labels have always lain {trail.mean:+.4g} from the answers; they spread by {each.sd:.4g}"
    return [Finding(BIAS, reason, trail.since_ms, {"bias": trail.mean, "sd": each.sd})]
