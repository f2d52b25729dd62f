"""A model on trial: it gets a share of the keys, which grows while it proves itself beside what it is to replace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import share

MIN_EXAMPLES = 50  # below, no interval holds: it is asymptotic


@dataclass(frozen=True)
class Canary:
    """Which model is on trial, and on what terms.

    It begins in shadow. Each step, the shadow's included, asks for `examples` over which it and another model that
    was served can be compared pair by pair, and for an interval of the difference that lies below
    `tolerance` (a share of the other's error; 0: it must be better). After the last step it has all of the traffic.
    Whatever a policy finds against it on the way rolls it back into the shadow.
    """

    model: str
    steps: tuple[float, ...] = (0.05, 0.25, 0.5)  # shares of the keys
    examples: int = 500  # pairs per step
    tolerance: float = 0.0

    def faults(self) -> Iterator[str]:
        """What cannot be meant, a sentence each."""
        steps = self.steps
        if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] < 1:
            yield f"steps are {steps}; they must be shares between 0 and 1, each larger than the one before"
        if self.examples < MIN_EXAMPLES:
            yield f"examples is {self.examples}; it must be {MIN_EXAMPLES} or more"
        if not self.tolerance >= 0:
            yield f"tolerance is {self.tolerance}; it must not be negative"


def point(key: str) -> float:
    """Where a key stands between 0 and 1: a share that grows keeps the keys it has."""
    return share.point(b"canary/" + key.encode())
