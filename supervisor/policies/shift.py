"""Distributions that have left their own history: of a model's answers, and of the facts' features.

Each column is a histogram of bins (models/sketch.py). Its population stability index against the long-run
histogram changes with every hour by itself; what counts is an index that leaves its own history, and is large.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec.structs import replace

from ...models.sketch import psi
from ...topics.messages import Sketch, Vitals
from .health import Finding, Health, Memory
from .limits import Limits
from .sequential import GRAINS, SEASONS, Block, Floor, Trail

SHIFT = "shift"
ANSWERS = "answers"  # stands for the model's output among the columns

INDEX = Floor(young=0.5, mature=0.15)  # of the square root of the index, which is a distance
NULLS = Floor(young=0.1, mature=0.02)  # of the share of nulls
VALUES = 200  # of a column, compared at a time: the index of chance alone is then about 0.05
MAX_COLUMNS = 32  # judged, those that came first
MAX_BINS = 48  # of the long-run histogram; the rarest go


class Part(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Values that are fewer than what is compared at a time."""

    size: int = 0
    bins: dict[str, int] = {}  # never changed in place

    def plus(self, new: Sketch) -> Part:
        bins = dict(self.bins)
        for name, n in new.bins.items():
            bins[name] = bins.get(name, 0) + n
        return Part(self.size + new.count, bins)


class Column(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One column: its long-run histogram, and how the index and the nulls went."""

    usual: dict[str, float] = {}  # never changed in place
    learned_ms: int = 0
    from_ms: int = 0
    part: Part = Part()
    moved: Trail = Trail()  # the index's square root, block by block
    nulls: Trail = Trail()

    def renewed(self) -> Column:
        return replace(self, moved=self.moved.renewed(), nulls=self.nulls.renewed())

    def after(self, new: Sketch, from_ms: int, to_ms: int, limits: Limits) -> Column:
        if not new.count:
            return self
        nulls = Block(from_ms, to_ms, new.count, new.nulls, new.nulls)
        began = self.from_ms if self.part.size else from_ms
        part = self.part.plus(new)
        update: dict[str, Any] = {
            "nulls": self.nulls.after(nulls, NULLS, limits.season_ms, limits.log_odds, share=True),
            "from_ms": began,
            "part": part,
        }
        if part.size >= VALUES:
            update["part"] = Part()
            if self.usual:
                distance = math.sqrt(max(0.0, psi(self.usual, {b: float(n) for b, n in part.bins.items()})))
                one = Block(began, to_ms, 1.0, distance, distance**2)
                update["moved"] = self.moved.after(one, INDEX, limits.season_ms, limits.log_odds, size=1)
            if not self.usual or to_ms - self.learned_ms >= limits.season_ms // GRAINS:
                update |= {"usual": _mixed(self.usual, part), "learned_ms": to_ms}
        return replace(self, **update)

    def shifted(self, limits: Limits) -> tuple[int, float] | None:
        """Since when (ms), and by what index."""
        since_ms = self.moved.up.against(limits.log_odds)
        index = self.moved.last**2
        return None if since_ms is None or index < limits.min_psi else (since_ms, index)


def _mixed(usual: dict[str, float], part: Part) -> dict[str, float]:
    """Counts as of `SEASONS` at most: what is older fades."""
    most = SEASONS * GRAINS * VALUES
    total = sum(usual.values())
    kept = min(1.0, most / total) if total else 1.0
    mixed = {b: n * kept for b, n in usual.items()}
    for b, n in part.bins.items():
        mixed[b] = mixed.get(b, 0.0) + n
    largest = sorted(mixed, key=lambda b: (-mixed[b], b))[:MAX_BINS]
    return {b: round(mixed[b], 1) for b in largest}


class Memories(Memory, frozen=True):
    columns: dict[str, Column] = {}

    def renewed(self, since_ms: int) -> Memory:
        return Memories(since_ms=since_ms, columns={n: c.renewed() for n, c in self.columns.items()})


def shift(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(SHIFT, Memories)
    if vitals is not None and vitals.agent == "score" and (vitals.sketch.count or vitals.features):
        columns = dict(known.columns)
        for name, new in {ANSWERS: Sketch() if vitals.warming else vitals.sketch, **vitals.features}.items():
            if new.count and (name in columns or len(columns) < MAX_COLUMNS):
                column = columns.get(name, Column())
                columns[name] = column.after(new, vitals.from_ms, vitals.to_ms, limits)
        known = replace(known, columns=columns)
        health = health.remember(SHIFT, known)
    if vitals is not None:
        return health, []
    found = [f for name, column in known.columns.items() for f in _found(name, column, limits)]
    return health, found[:1]  # one alarm: the first column's name leads to the others


def _found(name: str, column: Column, limits: Limits) -> list[Finding]:
    what = name if name == ANSWERS else f"feature {name!r}"
    shifted = column.shifted(limits)
    if shifted is not None:
        since_ms, index = shifted
        usual = column.moved.mean**2
        reason = f"{what} shifted: stability index {index:.2f}; it used to be {usual:.2f}"
        return [Finding(SHIFT, reason, since_ms, {"psi": index, "usual": usual})]
    missing_ms = column.nulls.up.against(limits.log_odds)
    if missing_ms is None:
        return []
    share, usual = column.nulls.last, column.nulls.mean
    reason = f"{what} is missing or no number in {share:.0%}; it used to be in {usual:.0%}"
    return [Finding(SHIFT, reason, missing_ms, {"share": share, "usual": usual})]
