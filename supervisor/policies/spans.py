"""Spans of offsets: what was counted, so that a repeat is not counted twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...topics.messages import Span

MAX_GAPS = 16  # separate covered ranges kept per partition; vitals arrive late by a few windows at most


def merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same offsets in the fewest spans, in order; empty ones vanish."""
    merged: list[Span] = []
    for span in sorted(Span(*s) for s in spans):
        if span.end <= span.start:
            continue
        if merged and merged[-1].partition == span.partition and span.start <= merged[-1].end:
            merged[-1] = merged[-1]._replace(end=max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return tuple(merged)


def cover(covered: Sequence[Span], spans: Sequence[Span]) -> tuple[Span, ...]:
    """All of both; beyond MAX_GAPS ranges of a partition the oldest gaps count as covered."""
    merged = merge([*covered, *spans])
    kept: list[Span] = []
    for p in dict.fromkeys(s.partition for s in merged):
        ranges = [s for s in merged if s.partition == p]
        excess = max(0, len(ranges) - MAX_GAPS)
        kept += [Span(p, ranges[0].start, ranges[excess].end), *ranges[excess + 1 :]]
    return tuple(kept)


def uncovered_share(spans: Sequence[Span], covered: Sequence[Span]) -> float:
    own = merge(spans)
    total = sum(s.end - s.start for s in own)
    if not total:
        return 1.0
    known = sum(
        max(0, min(s.end, c.end) - max(s.start, c.start))
        for s in own
        for c in covered
        if c.partition == s.partition
    )
    return (total - known) / total


def starts(spans: Sequence[Span]) -> dict[int, int]:
    return {s.partition: s.start for s in reversed(merge(spans))}


def advance(learned: dict[int, int], spans: Sequence[Span]) -> dict[int, int]:
    ends = {s.partition: s.end for s in merge(spans)}
    return {p: max(learned.get(p, 0), ends.get(p, 0)) for p in sorted({*learned, *ends})}
