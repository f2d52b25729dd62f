"""Events against their season, dead letters, and versions that the gate refused as none of ours.

Hours of the day are compared with the same hours of the last days, by event time. A source is judged silent
once a whole season is known; twice, or half, of what was is news for other policies, or good news.
"""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from ...topics.messages import Vitals
from .fold import GATE_REFUSALS
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import Block, Floor, Trail

INTEGRITY = "integrity"

DEAD = Floor(young=0.02, mature=0.005)  # of the share of events that are dead letters
HOUR_MS = 3_600_000
HOURS = 24
DAY_MS = HOURS * HOUR_MS
DAYS = 8  # remembered per hour of the day: a week, and one for the day that is not over
MAX_SERIES = 24  # types and slices counted, those that came first; 1 kB each
LUCK = 3.0  # standard deviations of a Poisson count
COUNTED = ("facts", "outcomes")


class Hour(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The hour at hand, as a number since 1970, and what came in it."""

    number: int = 0
    came: float = 0.0
    until_ms: int = 0
    whole: bool = False  # seen from its beginning


class Series(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Counts per hour of the day, of the last days, newest first."""

    days: tuple[tuple[float, ...], ...] = ((),) * HOURS
    hour: Hour = Hour()
    odd_ms: int = 0  # since when it is out of its season; 0: it is not
    odd: float = 0.0  # times the least, or the most, of that hour

    def after(self, count: float, at_ms: int, limits: Limits) -> Series:
        """What came up to a moment; earlier ones count for the hour at hand."""
        number = max(self.hour.number, at_ms // HOUR_MS)
        known = self if number == self.hour.number else self._closed(number)
        hour = known.hour
        hour = replace(hour, came=hour.came + count, until_ms=max(hour.until_ms, at_ms))
        return replace(known, hour=hour)._judged(limits)

    def _closed(self, number: int) -> Series:
        days, last = self.days, self.hour
        if last.whole:
            slot = last.number % HOURS
            days = (*days[:slot], (last.came, *days[slot])[:DAYS], *days[slot + 1 :])
        return replace(self, days=days, hour=Hour(number, whole=last.number == number - 1))

    def _judged(self, limits: Limits) -> Series:
        hour = self.hour
        past = self.days[hour.number % HOURS]
        if not past or not hour.whole:
            return self
        ratio = self._quiet(past, limits) if len(past) * DAY_MS >= limits.season_ms else None
        most = max(past)
        if ratio is None and hour.came > limits.flood * most and hour.came > limits.min_expected:
            ratio = hour.came / max(most, 1.0)
        if ratio is None:
            # An hour that has just begun tells nothing yet: what was odd before it stays so.
            young = hour.until_ms % HOUR_MS * min(past) < limits.min_expected * HOUR_MS
            return self if self.odd_ms and young else replace(self, odd_ms=0, odd=0.0)
        return replace(self, odd_ms=self.odd_ms or hour.number * HOUR_MS, odd=ratio)

    def _quiet(self, past: tuple[float, ...], limits: Limits) -> float | None:
        """What came, of the least that was to be expected, if that cannot be chance: Chernoff's bound for the
        lower tail of a Poisson count."""
        hour = self.hour
        # What came on a single day is itself a count, and may have been a lucky one.
        least = min(past) - LUCK * math.sqrt(min(past))
        expected = least * (hour.until_ms - hour.number * HOUR_MS) / HOUR_MS
        if expected <= 0 or hour.came > limits.quiet * expected:
            return None
        r = hour.came / expected
        surprise = expected * (1 - r + (r * math.log(r) if r else 0.0))
        return r if surprise >= limits.log_odds else None


class Memories(Memory, frozen=True):
    series: dict[str, Series] = {}
    dead: Trail = Trail()
    refused: str = ""  # what the gate said of the newest version that is none of ours
    refused_ms: int = 0
    refused_version: int = 0


def integrity(
    health: Health, vitals: Vitals | None, now: int, limits: Limits
) -> tuple[Health, list[Finding]]:
    known = health.recall(INTEGRITY, Memories)
    if vitals is not None:
        known = _refused(_counted(known, vitals, limits), vitals)
        health = health.remember(INTEGRITY, known)
    return health, _found(known, limits) if vitals is None else []


def _counted(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    if vitals.model or vitals.agent not in ("ingest", "score"):
        return known
    at_ms = vitals.event_ms or vitals.to_ms
    counts = {name: float(vitals.counts.get(name, 0)) for name in COUNTED if vitals.agent == "ingest"}
    if vitals.agent == "score":
        sliced = {n for n in known.series if n not in COUNTED}
        counts = {n: float(vitals.slices[n].facts) for n in vitals.slices}
        counts |= {n: 0.0 for n in sliced if n not in counts}
    series = dict(known.series)
    for name, count in counts.items():
        if name in series or len(series) < MAX_SERIES:
            series[name] = series.get(name, Series()).after(count, at_ms, limits)
    dead = vitals.counts.get("dead", 0)
    events = dead + sum(vitals.counts.get(name, 0) for name in COUNTED)
    share = Block(vitals.from_ms, vitals.to_ms, events, dead, dead)
    trail = known.dead.after(share, DEAD, limits.season_ms, limits.log_odds, share=True)
    return replace(known, series=series, dead=trail)


def _refused(known: Memories, vitals: Vitals) -> Memories:
    foreign = vitals.gate and not vitals.warming and vitals.gate.split(":")[0].strip() not in GATE_REFUSALS
    if foreign:
        began = known.refused_ms or vitals.to_ms
        return replace(known, refused=vitals.gate, refused_ms=began, refused_version=vitals.version)
    if known.refused and vitals.asked and vitals.version > known.refused_version:
        return replace(known, refused="", refused_ms=0)
    return known


def _found(known: Memories, limits: Limits) -> list[Finding]:
    if known.refused:
        reason = f"the gate refused version {known.refused_version}: {known.refused}"
        return [Finding(INTEGRITY, reason, known.refused_ms, {"version": float(known.refused_version)})]
    since_ms = known.dead.up.against(limits.log_odds)
    if since_ms is not None:
        share, usual = known.dead.last, known.dead.mean
        reason = f"{share:.1%} of events are dead letters; it used to be {usual:.1%}"
        return [Finding(INTEGRITY, reason, since_ms, {"share": share, "usual": usual})]
    for name, series in known.series.items():
        if series.odd_ms:
            than = "least" if series.odd < 1 else "most"
            reason = f"{name}: {series.odd:.2g} times the {than} that used to come at this hour"
            return [Finding(INTEGRITY, reason, series.odd_ms, {"ratio": series.odd})]
    return []
