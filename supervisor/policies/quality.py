"""Errors against the baseline's over the same examples, overall and by slice, and against the model's own past.

Only the first is grave, for the baseline answers in the model's place: a model that has become worse, but is
better than that, stays and is reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from ...topics.messages import Moments, Vitals
from .health import WORST, Examples, Finding, Health, Memory, onset, push, trim
from .limits import Limits
from .sequential import BLOCK, DEPENDENCE, Block, Evidence, Floor, Trail

QUALITY = "quality"

OWN = Floor(young=0.5, mature=0.15, relative=True)  # of the error's mean
WRONG = Floor(young=0.1, mature=0.02)  # of the share of wrong answers
MAX_SLICES = 16  # judged by themselves, those that came first
SLICE_SHIFT = 0.25  # of a standard deviation of the difference that a slice may be worse by


class Difference(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Of paired errors: the open block, a usual standard deviation, and the evidence that it is above 0."""

    part: Block = Block()
    seen: float = 0.0  # examples
    sd: float = 0.0
    worse: Evidence = Evidence()
    calm: float = 0.0  # examples of the last blocks, none of them above 0

    def after(self, new: Block, limits: Limits, shift: float = 0.0) -> Difference:
        part = self.part.plus(new)
        seen = self.seen + new.size
        if part.size < BLOCK / 2:
            return replace(self, part=part, seen=seen)
        sd = math.sqrt(part.variance)
        usual = max(sd, self.sd / 2)  # a block of chance equals is no certainty
        score = part.mean / usual - shift if usual else math.copysign(WORST, part.mean) if part.mean else 0.0
        z = score * math.sqrt(part.size / DEPENDENCE)
        worse = self.worse.after(z, part.from_ms, limits.log_odds)
        usual_sd = self.sd + (min(sd, 3 * self.sd) - self.sd) / 20 if self.sd else sd
        calm = self.calm + part.size if score <= 0 else 0.0
        return Difference(Block(), seen, usual_sd, worse, calm)


class Memories(Memory, frozen=True):
    paired: Difference = Difference()
    own: Trail = Trail()
    wrong: Trail = Trail()  # of the share of answers that held another class for likelier
    slices: dict[str, Difference] = {}
    served: Block = Block()  # own error minus that of what another model served, since the verdict in force
    served_error: float = 0.0  # sum of the latter

    def renewed(self, since_ms: int) -> Memory:
        return Memories(since_ms=since_ms, own=self.own.renewed(), wrong=self.wrong.renewed())


def quality(health: Health, vitals: Vitals | None, now: int, limits: Limits) -> tuple[Health, list[Finding]]:
    known = health.recall(QUALITY, Memories)
    if vitals is not None and vitals.agent == "learn" and vitals.labelled:
        entry = Examples(
            vitals.from_ms,
            min(vitals.to_ms, now),
            vitals.version,
            vitals.labelled,
            min(vitals.error, WORST),
            min(vitals.baseline_error, WORST),
        )
        window = push(health.examples, entry, limits.window_examples)
        window = trim(window, limits.window_examples, now - limits.window_ms)
        known = _seen(known, vitals, limits)
        health = replace(health, examples=window).remember(QUALITY, known)
    if vitals is not None:
        return health, []
    found = [_baseline(health, known, limits, now), _own(known, limits), _wrong(known, limits)]
    return health, [*(f for f in found if f is not None), *_slices(known, limits)]


def _seen(known: Memories, vitals: Vitals, limits: Limits) -> Memories:
    if not vitals.errors.count:
        return known
    slices = dict(known.slices)
    for name, each in vitals.slices.items():
        if each.worse.count and (name in slices or len(slices) < MAX_SLICES):
            worse = _block(vitals, each.worse)
            slices[name] = slices.get(name, Difference()).after(worse, limits, SLICE_SHIFT)
    wrong = known.wrong
    if vitals.wrong is not None:
        share = Block(vitals.from_ms, vitals.to_ms, vitals.errors.count, vitals.wrong, vitals.wrong)
        wrong = wrong.after(share, WRONG, limits.season_ms, limits.log_odds, share=True)
    return replace(
        known,
        wrong=wrong,
        paired=known.paired.after(_difference(vitals, limits.margin), limits),
        own=known.own.after(_block(vitals, vitals.errors), OWN, limits.season_ms, limits.log_odds),
        slices=slices,
        served=known.served.plus(_block(vitals, vitals.against)) if vitals.against.count else known.served,
        served_error=known.served_error + vitals.against_error,
    )


def _block(vitals: Vitals, m: Moments) -> Block:
    return Block(vitals.from_ms, vitals.to_ms, m.count, m.total, m.squares)


def _difference(vitals: Vitals, margin: float) -> Block:
    """Of error - (1 + margin) * baseline, from sums: its square needs the sum of products."""
    own, base, factor = vitals.errors, vitals.baselines, 1 + margin
    squares = own.squares - 2 * factor * vitals.products + factor * factor * base.squares
    total = own.total - factor * base.total
    return Block(vitals.from_ms, vitals.to_ms, own.count, total, max(0.0, squares))


def worse(error: float, baseline: float, margin: float) -> bool:
    return not error <= baseline * (1 + margin)


def _baseline(health: Health, known: Memories, limits: Limits, now: int) -> Finding | None:
    if known.paired.seen and known.paired.worse.against(limits.log_odds) is None:
        return None
    entries = [e for e in health.examples if e.to_ms >= now - limits.window_ms]
    labelled = sum(e.size for e in entries)
    if labelled < limits.min_examples:
        return None
    error, baseline = sum(e.error for e in entries), sum(e.baseline for e in entries)
    began = onset([e.error - e.baseline * (1 + limits.margin) for e in entries])
    # Since the change the model must be worse in fact, not only surely so.
    late = entries[began:]
    if not worse(sum(e.error for e in late), sum(e.baseline for e in late), limits.margin):
        return None
    if not known.paired.seen and not worse(error, baseline, limits.margin):
        return None  # sums only, from an older learner: no sequence to test
    mean, reference = error / labelled, baseline / labelled
    return Finding(
        QUALITY,
        f"error {mean:.4g} against the baseline's {reference:.4g} over the last {labelled} labelled examples",
        entries[began].from_ms,
        {"examples": float(labelled), "error": mean, "baseline": reference, "margin": limits.margin},
        grave=True,
    )


def _own(known: Memories, limits: Limits) -> Finding | None:
    return _risen(known.own, limits, "error", "error {:.4g}; it used to be {:.4g}")


def _wrong(known: Memories, limits: Limits) -> Finding | None:
    """The log loss of a classifier has a heavy tail, in which a concept that has changed may drown for long."""
    return _risen(known.wrong, limits, "wrong", "{:.1%} of answers are wrong; {:.1%} used to be")


def _risen(trail: Trail, limits: Limits, name: str, reason: str) -> Finding | None:
    """What has left its own past upwards; `reason` is given what it is and what it used to be."""
    since_ms = trail.up.against(limits.log_odds)
    if since_ms is None:
        return None
    evidence = {name: trail.last, "usual": trail.mean}
    return Finding(QUALITY, reason.format(trail.last, trail.mean), since_ms, evidence)


def _slices(known: Memories, limits: Limits) -> Iterator[Finding]:
    for name, each in known.slices.items():
        since_ms = each.worse.against(limits.log_odds)
        if since_ms is not None and each.seen >= limits.min_examples / 2:
            reason = f"worse than the baseline where {name}, over {each.seen:.0f} labelled examples"
            yield Finding(QUALITY, reason, since_ms, {"examples": each.seen}, slice=name)
