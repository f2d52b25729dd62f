"""Answers that have stopped to differ: all zero, constant, or with a variance far below their history's.

A model that never told one fact from another, such as a mean, has no such history and is left alone.
"""

from __future__ import annotations

import math
from typing import Any

from msgspec.structs import replace

from ...topics.messages import Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import BLOCK, Block, Floor, Trail

COLLAPSE = "collapse"

# of the logarithm of the blocks' standard deviation: to a third and, once a season was seen, to 0.6 of it
FLOOR = Floor(young=1.0, mature=0.5)
CONSTANT = 1e-9  # of the answers' size: rounding of the same sum in another order
LEAST_SD = 1e-12  # stands for none where a logarithm is needed
LEAST_CONSTANT = 200  # answers
LEAST_VARIED = 5  # blocks with variance before their lack of it is odd
MOST_FLAT = 0.1  # of blocks that may have had none: a mean moves only where versions change


class Memories(Memory, frozen=True):
    part: Block = Block()
    same: Block = Block()  # the latest run of answers without variance
    logs: Trail = Trail()  # of log standard deviations
    varied: int = 0  # blocks
    flat: int = 0  # blocks, apart from those of a run that is being found out

    def renewed(self, since_ms: int) -> Memory:
        return Memories(since_ms=since_ms, logs=self.logs.renewed(), varied=self.varied, flat=self.flat)

    @property
    def used_to_vary(self) -> bool:
        return self.varied >= LEAST_VARIED and self.flat <= MOST_FLAT * self.varied


def collapse(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(COLLAPSE, Memories)
    if vitals is not None and vitals.agent == "score" and vitals.answers.count and not vitals.warming:
        a = vitals.answers
        block = Block(vitals.from_ms, vitals.to_ms, a.count, a.total, a.squares)
        known = _seen(known, block, a.low == a.high, limits)
        health = health.remember(COLLAPSE, known)
    return health, _found(known, limits) if vitals is None else []


def _seen(known: Memories, new: Block, constant: bool, limits: Limits) -> Memories:
    part = known.part.plus(new)
    same = known.same
    if constant:
        moved = same.size and abs(same.mean - new.mean) > CONSTANT * (abs(same.mean) + abs(new.mean))
        same = new if moved else same.plus(new)
    else:
        same = Block()
    if part.size < BLOCK:
        return replace(known, part=part, same=same)
    update: dict[str, Any] = {"part": Block(), "same": same}
    size, sd = math.sqrt(part.squares / part.size), math.sqrt(part.variance)
    if same.size >= part.size:
        update["flat"] = known.flat + (same.size < LEAST_CONSTANT + BLOCK)
    else:
        log = math.log(max(sd, CONSTANT * size, LEAST_SD))
        one = Block(part.from_ms, part.to_ms, 1.0, log, log * log)
        update["varied"] = known.varied + 1
        update["logs"] = known.logs.after(one, FLOOR, limits.season_ms, limits.log_odds, size=1)
    return replace(known, **update)


def _found(known: Memories, limits: Limits) -> list[Finding]:
    same, logs = known.same, known.logs
    usual = math.exp(logs.mean)
    if not known.used_to_vary:
        return []
    if same.size >= LEAST_CONSTANT:
        reason = f"the last {same.size:.0f} answers are all {same.mean:.4g}; they used to vary by {usual:.3g}"
        evidence = {"answers": same.size, "answer": same.mean, "usual_sd": usual}
        return [Finding(COLLAPSE, reason, same.from_ms, evidence, grave=True)]
    since_ms = logs.down.against(limits.log_odds)
    if since_ms is None:
        return []
    sd = math.exp(logs.last)
    reason = f"answers vary by {sd:.3g}; they used to by {usual:.3g}"
    return [Finding(COLLAPSE, reason, since_ms, {"sd": sd, "usual_sd": usual}, grave=True)]
