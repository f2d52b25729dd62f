"""What came true minus what was answered, overall and by slice: a mean that is not zero, against its spread."""

from __future__ import annotations

import math

from pydantic import Field

from ...topics.messages import Moments, Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import BLOCK, DEPENDENCE, Block, Evidence

BIAS = "bias"
ALL = ""  # stands for every slice together
MAX_SLICES = 16  # judged by themselves, those that came first
LEAST_SEEN = 1_000  # examples before anything is said: a young model is on its way


class Residuals(Memory):
    part: Block = Block()
    seen: float = 0.0  # examples
    mean: float = 0.0  # of the last block
    sd: float = 0.0  # the usual one
    above: Evidence = Evidence()  # labels are above answers
    below: Evidence = Evidence()

    def after(self, new: Block, limits: Limits) -> Residuals:
        part = self.part.plus(new)
        seen = self.seen + new.size
        if part.size < BLOCK:
            return self.model_copy(update={"part": part, "seen": seen})
        sd = math.sqrt(part.variance)
        update: dict[str, object] = {
            "part": Block(),
            "seen": seen,
            "mean": part.mean,
            "sd": self.sd + (min(sd, 3 * self.sd) - self.sd) / 20 if self.sd else sd,
        }
        size = max(sd, self.sd / 2)
        if seen >= LEAST_SEEN and size:
            root = math.sqrt(part.size / DEPENDENCE)
            for side, sign in (("above", 1.0), ("below", -1.0)):
                z = (sign * part.mean / size - limits.max_bias) * root
                update[side] = getattr(self, side).after(z, part.from_ms, limits.log_odds)
        return self.model_copy(update=update)


class Memories(Memory):
    parts: dict[str, Residuals] = Field(default_factory=dict)


def bias(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(BIAS, Memories)
    if vitals is not None and vitals.agent == "learn" and vitals.residuals.count:
        known = _seen(known, vitals, limits)
        health = health.remember(BIAS, known)
    for name, each in known.parts.items():
        since = [e.against(limits.log_odds) for e in (each.above, each.below)]
        began = [s for s in since if s is not None]
        if began:
            where = f" where {name}" if name else ""
            reason = f"labels lie {each.mean:+.4g} from the answers{where}; residuals spread by {each.sd:.4g}"
            return health, [Finding(BIAS, reason, min(began), {"bias": each.mean, "sd": each.sd})]
    return health, []


def _seen(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    parts = dict(known.parts)
    told: dict[str, Moments] = {ALL: vitals.residuals}
    told |= {name: each.residuals for name, each in vitals.slices.items() if each.residuals.count}
    for name, m in told.items():
        if name in parts or len(parts) <= MAX_SLICES:
            block = Block(vitals.from_ms, vitals.to_ms, m.count, m.total, m.squares)
            parts[name] = parts.get(name, Residuals()).after(block, limits)
    return known.model_copy(update={"parts": parts})
