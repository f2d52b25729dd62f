"""Models that take longer per fact than their objective, and facts that wait beyond the deadline."""

from __future__ import annotations

from msgspec.structs import replace

from ...topics.messages import WAITED, Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import Block

LATENCY = "latency"

LEAST = 100  # facts timed at a time
RUN = 3  # slow blocks, or windows with a wait, one after another: a pause of the collector is none


class Memories(Memory, frozen=True):
    part: Block = Block()  # seconds, by facts
    slow: int = 0  # blocks
    slow_ms: int = 0
    us: float = 0.0  # per fact in the last block
    late: int = 0  # windows
    late_ms: int = 0
    waited_ms: int = 0


def latency(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(LATENCY, Memories)
    if vitals is not None and vitals.agent == "score":
        known = _waited(_timed(known, vitals, limits), vitals, limits)
        health = health.remember(LATENCY, known)
    if vitals is not None:
        return health, []
    if known.slow >= RUN:
        reason = f"{known.us:.0f} µs per fact; {limits.max_us:.0f} are the objective"
        return health, [Finding(LATENCY, reason, known.slow_ms, {"us": known.us, "objective": limits.max_us})]
    if known.late >= RUN:
        reason = f"facts waited up to {known.waited_ms} ms; the deadline is {limits.max_wait_ms} ms"
        return health, [Finding(LATENCY, reason, known.late_ms, {"waited_ms": float(known.waited_ms)})]
    return health, []


def _timed(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    if not vitals.asked:
        return known
    part = known.part.plus(Block(vitals.from_ms, vitals.to_ms, vitals.asked, vitals.seconds, 0.0))
    if part.size < LEAST:
        return replace(known, part=part)
    us = part.mean * 1e6
    slow = known.slow + 1 if us > limits.max_us else 0
    began = known.slow_ms if slow > 1 else part.from_ms
    return replace(known, part=Block(), us=us, slow=slow, slow_ms=began)


def _waited(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    if not limits.max_wait_ms or WAITED not in vitals.counts:
        return known
    waited = vitals.counts[WAITED]
    late = known.late + 1 if waited > limits.max_wait_ms else 0
    began = known.late_ms if late > 1 else vitals.from_ms
    return replace(known, late=late, late_ms=began, waited_ms=waited)
