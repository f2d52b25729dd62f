"""What is wrong with a model: policies, each a pure fold of vitals into health, and what it finds there.

A policy is `(health, vitals, now) -> (health, findings)`: it takes up one vitals record, or only looks
(None). What it must remember it keeps in the health, under its own name; see docs/judgement.md for one's own.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from ...topics.messages import Vitals
from .bias import BIAS, bias
from .bounds import BOUNDS, bounds
from .collapse import COLLAPSE, collapse
from .fold import MAX_MARKS, MAX_VERSIONS, fold, look
from .golden import GOLDEN, golden
from .health import (
    HEALTH_GRAINS,
    MAX_ENTRIES,
    Answers,
    Examples,
    Finding,
    Health,
    Mark,
    Memory,
    Policy,
    Tally,
)
from .integrity import INTEGRITY, integrity
from .labels import LABELS, labels
from .latency import LATENCY, latency
from .limits import Limits
from .quality import QUALITY, quality, worse
from .shift import SHIFT, shift
from .spans import MAX_GAPS, cover, merge
from .staleness import STALENESS, staleness

__all__ = [
    "BIAS",
    "BOUNDS",
    "COLLAPSE",
    "GOLDEN",
    "HEALTH_GRAINS",
    "INTEGRITY",
    "LABELS",
    "LATENCY",
    "MAX_ENTRIES",
    "MAX_GAPS",
    "MAX_MARKS",
    "MAX_VERSIONS",
    "QUALITY",
    "SHIFT",
    "STALENESS",
    "Answers",
    "Examples",
    "Finding",
    "Health",
    "Limits",
    "Mark",
    "Memory",
    "Policy",
    "Tally",
    "cover",
    "fold",
    "look",
    "merge",
    "of_models",
    "of_pipelines",
    "worse",
]


class _Limited(Protocol):
    def __call__(
        self, health: Health, vitals: Vitals | None, now: int, limits: Limits
    ) -> tuple[Health, list[Finding]]: ...


# In the order in which a model is taken out: the first grave finding is the verdict's reason.
OF_MODELS: tuple[_Limited, ...] = (
    bounds,
    collapse,
    quality,
    bias,
    shift,
    golden,
    staleness,
    latency,
    integrity,
)
OF_PIPELINES: tuple[_Limited, ...] = (shift, labels, integrity, staleness, latency)


def of_models(limits: Limits) -> tuple[Policy, ...]:
    """The built-in policies of one model."""
    return tuple(partial(each, limits=limits) for each in OF_MODELS)


def of_pipelines(limits: Limits) -> tuple[Policy, ...]:
    """Those of what concerns no single model: facts, events, labels. Their health is that of the model ""."""
    return tuple(partial(each, limits=limits) for each in OF_PIPELINES)
