"""What a model is held to. The defaults need no tuning; see docs/judgement.md for what each one decides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import timedelta


@dataclass(frozen=True)
class Objectives:
    """Thresholds of the judgement of one model, or of all."""

    margin: float = 0.10  # how much worse than the fallback it may be, relative to the fallback's error
    min_examples: int = 500  # paired examples before it is compared at all
    max_staleness: timedelta = timedelta(minutes=15)  # of arriving examples without a new version in use
    max_us: float = 2_000.0  # µs per fact; the gate's own limit
    max_bias: float = 0.5  # mean residual, in standard deviations of the residuals
    out_share: float = 0.01  # of answers that may be out of bounds, not finite or raised
    # The longest period in which the stream repeats itself. Until one has passed, only what doubles is a
    # shift; zero for a stream without seasons, which is then judged from its first minutes.
    season: timedelta = timedelta(days=7)

    def faults(self) -> Iterator[str]:
        """What cannot be meant, a sentence each."""
        for each in fields(self):
            value = getattr(self, each.name)
            zero = timedelta(0) if isinstance(value, timedelta) else 0
            may_be_zero = each.name in ("margin", "season")
            if not (value >= zero if may_be_zero else value > zero):
                yield f"{each.name} is {value}; it must {'not be negative' if may_be_zero else 'be more than 0'}"
