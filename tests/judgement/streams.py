"""Published streams whose drift is at a known place, and their clean twins. Seeded; nothing is downloaded.

River's generators: SEA (Street and Kim 2001), Agrawal (Agrawal et al. 1993), the moving hyperplane (Hulten et al.
2001), random RBF (Bifet et al. 2009) and Friedman's function with the three drifts of Ikonomovska et al. (2011).
Two concepts are joined by `ConceptDriftStream`, MOA's sigmoid. Magnitudes and speeds of the incremental ones are
those of Gomes et al. (2017, "Adaptive random forests").

River's bundled data sets: rows are drawn at random, with replacement, so that no drift of their own is left; from
the known place on either each feature holds what its neighbour held, or each class is called by the next one's
name. Features exchanged at a known place in a shuffled set are how Sethi and Kantardzic (2017, "On the reliable
detection of concept drift from streaming unlabeled data") induce drift; they exchange some, here it is all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeAlias

from river import datasets
from river.datasets import synth

from riverkeeper import Bounds
from riverkeeper.models.pipeline import PROBABILITY
from riverkeeper.models.quality import Task

FACTS = 18_000  # of a stream: 36 windows
ONSET = 12_000  # facts before the drift: histories are held against nobody for the first 20 windows
# Facts in which the share of the new concept goes from 2 % to 98 %. River's sigmoid cannot be steeper than this
# abrupt one: its exponential overflows at the stream's first fact.
ABRUPT, GRADUAL = 200, 4_000

Row: TypeAlias = tuple[dict[str, float], bool | float | str]
Rows: TypeAlias = Callable[[int], Iterator[tuple[dict[Any, Any], Any]]]  # by seed, without end


@dataclass(frozen=True)
class Stream:
    name: str
    task: Task
    source: Rows
    bounds: Bounds = PROBABILITY
    drifts: bool = True

    def rows(self, seed: int, facts: int = FACTS) -> list[Row]:
        """The first `facts` rows; features are named x0, x1, … in their order."""
        found = list(islice(self.source(seed), facts))
        names = {name: f"x{i}" for i, name in enumerate(sorted({n for x, _ in found for n in x}))}
        return [({names[n]: float(x.get(n, 0.0)) for n in names}, self._label(y)) for x, y in found]

    def _label(self, value: Any) -> bool | float | str:
        if self.task == "regression":
            return float(value)
        return bool(value) if self.task == "binary" else str(value)


def _joined(before: Callable[[int], Any], after: Callable[[int], Any], width: int) -> Rows:
    """The new concept begins at the onset, with 2 % of the facts."""

    def rows(seed: int) -> Any:
        two = (before(seed), after(seed))
        return iter(synth.ConceptDriftStream(*two, position=ONSET + width // 2, width=width // 2, seed=seed))

    return rows


def _sea(variant: int, offset: int = 0) -> Callable[[int], Any]:
    return lambda seed: synth.SEA(variant=variant, noise=0.1, seed=seed + offset)


def _agrawal(function: int, offset: int = 0) -> Callable[[int], Any]:
    return lambda seed: synth.Agrawal(classification_function=function, seed=seed + offset)


def _plane(offset: int = 0, change: float = 0.0) -> Callable[[int], Any]:
    return lambda seed: synth.Hyperplane(seed=seed + offset, n_drift_features=10, mag_change=change)


def _rbf(model: int = 0, sample: int = 0, speed: float = 0.0) -> Callable[[int], Any]:
    return lambda seed: synth.RandomRBFDrift(
        seed_model=seed + model, seed_sample=seed + sample, change_speed=speed
    )


def _friedman(kind: str) -> Rows:
    later = (FACTS + 1, FACTS + 2)  # the other drifts of that generator are not reached
    places = (ONSET, *later) if kind == "lea" else (ONSET, later[0])
    width = GRADUAL if kind == "gsg" else 0
    return lambda seed: iter(
        synth.FriedmanDrift(drift_type=kind, position=places, transition_window=width, seed=seed)
    )


@cache
def _bundled(name: str) -> list[tuple[dict[Any, Any], Any]]:
    return list(getattr(datasets, name)())


def _drawn(name: str, change: str = "") -> Rows:
    def rows(seed: int) -> Iterator[tuple[dict[Any, Any], Any]]:
        known, rng = _bundled(name), random.Random(seed)
        names = sorted({n for x, _ in known for n in x})
        classes = sorted({y for _, y in known})
        moved = dict(zip(names, names[1:] + names[:1], strict=True))
        renamed = dict(zip(classes, classes[1:] + classes[:1], strict=True))
        place = 0
        while True:
            x, y = rng.choice(known)
            if place >= ONSET and change == "features":
                x = {n: x.get(moved[n], 0.0) for n in names}
            if place >= ONSET and change == "classes":
                y = renamed[y]
            place += 1
            yield x, y

    return rows


OTHER = 1_000  # added to a seed for what must differ
FRIEDMAN = Bounds(-20.0, 60.0)  # beyond what the function takes on by either concept
CHICKS = Bounds(-500.0, 1_000.0)  # grams; a chick weighs 35 to 373, a line may go below

STREAMS = (
    Stream("SEA, abrupt", "binary", _joined(_sea(2), _sea(3, OTHER), ABRUPT)),
    Stream("SEA, gradual", "binary", _joined(_sea(2), _sea(3, OTHER), GRADUAL)),
    Stream("Agrawal, abrupt", "binary", _joined(_agrawal(0), _agrawal(2, OTHER), ABRUPT)),
    Stream("Agrawal, gradual", "binary", _joined(_agrawal(0), _agrawal(2, OTHER), GRADUAL)),
    Stream("Hyperplane, abrupt", "binary", _joined(_plane(), _plane(OTHER), ABRUPT)),
    Stream("Hyperplane, incremental", "binary", _joined(_plane(), _plane(change=0.001), ABRUPT)),
    Stream("RBF, abrupt", "binary", _joined(_rbf(), _rbf(model=OTHER, sample=OTHER), ABRUPT)),
    Stream("RBF, incremental", "binary", _joined(_rbf(), _rbf(sample=OTHER, speed=0.001), ABRUPT)),
    Stream("Friedman, local abrupt", "regression", _friedman("lea"), FRIEDMAN),
    Stream("Friedman, global abrupt", "regression", _friedman("gra"), FRIEDMAN),
    Stream("Friedman, global gradual", "regression", _friedman("gsg"), FRIEDMAN),
    Stream("Phishing, features moved", "binary", _drawn("Phishing", "features")),
    Stream("Bananas, features moved", "binary", _drawn("Bananas", "features")),
    Stream("Bananas, classes renamed", "binary", _drawn("Bananas", "classes")),
    Stream("Shuttle, features moved", "binary", _drawn("Shuttle", "features")),
    Stream("ImageSegments, features moved", "multiclass", _drawn("ImageSegments", "features")),
    Stream("ChickWeights, features moved", "regression", _drawn("ChickWeights", "features"), CHICKS),
)

TWINS = (
    Stream("SEA", "binary", lambda seed: iter(_sea(2)(seed)), drifts=False),
    Stream("Agrawal", "binary", lambda seed: iter(_agrawal(0)(seed)), drifts=False),
    Stream("Hyperplane", "binary", lambda seed: iter(_plane()(seed)), drifts=False),
    Stream("RBF", "binary", lambda seed: iter(_rbf()(seed)), drifts=False),
    Stream("Friedman", "regression", lambda s: iter(synth.Friedman(seed=s)), FRIEDMAN, drifts=False),
    Stream("Phishing", "binary", _drawn("Phishing"), drifts=False),
    Stream("Bananas", "binary", _drawn("Bananas"), drifts=False),
    Stream("Shuttle", "binary", _drawn("Shuttle"), drifts=False),
    Stream("ImageSegments", "multiclass", _drawn("ImageSegments"), drifts=False),
    Stream("ChickWeights", "regression", _drawn("ChickWeights"), CHICKS, drifts=False),
)
