"""The same few facts asked of every version: answers that jump, and answers that no learning moves."""

from __future__ import annotations

import math

from msgspec.structs import replace

from ...topics.messages import Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import Block, Floor, Trail

GOLDEN = "golden"

# of the logarithm of how far answers moved: threefold, and twofold once a season was seen
MOVED = Floor(young=1.1, mature=0.7)
LEAST_MOVED = 1e-12  # stands for none where a logarithm is needed
STILL = 3  # versions in a row without any movement, of a model whose versions used to move


class Memories(Memory, frozen=True):
    logs: Trail = Trail()  # of log movements, one per version
    still: int = 0  # versions in a row
    still_ms: int = 0

    def renewed(self, since_ms: int) -> Memory:
        return Memories(since_ms=since_ms, logs=self.logs.renewed())


def golden(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(GOLDEN, Memories)
    if vitals is not None and vitals.agent == "learn" and vitals.golden.count:
        known = _seen(known, vitals, limits)
        health = health.remember(GOLDEN, known)
    if vitals is not None:
        return health, []
    since_ms = known.logs.up.against(limits.log_odds)
    if since_ms is not None:
        moved, usual = math.exp(known.logs.last), math.exp(known.logs.mean)
        reason = f"a version moved the golden answers by {moved:.3g}; versions used to by {usual:.3g}"
        return health, [Finding(GOLDEN, reason, since_ms, {"moved": moved, "usual": usual})]
    if known.still >= STILL and known.logs.blocks:
        reason = (
            f"{known.still} versions answer the golden facts exactly as the ones before, for all they learned"
        )
        return health, [Finding(GOLDEN, reason, known.still_ms, {"versions": float(known.still)})]
    return health, []


def _seen(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    moved = vitals.golden
    if not moved.high:
        began = known.still_ms if known.still else vitals.from_ms
        return replace(known, still=known.still + moved.count, still_ms=began)
    log = math.log(max(moved.total / moved.count, LEAST_MOVED))
    one = Block(vitals.from_ms, vitals.to_ms, 1.0, log, log * log)
    logs = known.logs.after(one, MOVED, limits.season_ms, limits.log_odds, size=1)
    return replace(known, logs=logs, still=0)
