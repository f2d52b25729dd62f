"""A world answers with what it had learned by then, and is compared with what was served over the same examples."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from river import dummy, linear_model, preprocessing, stats

from riverkeeper.models.pipeline import Bounds
from riverkeeper.replay import Candidate, World
from riverkeeper.replay.worlds import NORMAL_95, Pairs
from riverkeeper.topics.messages import Example, Features, Prediction, Source

TIME = datetime(2026, 1, 31, tzinfo=UTC)
WIDE = Bounds(-1e6, 1e6)
SAID: Mapping[str, Any] = {
    "time": TIME,
    "source": Source.MODEL,
    "model": "m",
    "version": 1,
    "fingerprint": "f",
}


def prediction(n: int, features: Features, value: float = 0.0) -> Prediction:
    return Prediction(
        id=f"f{n}",
        key=f"k{n}",
        value=value,
        reason="",
        asked="m",
        fact=f"facts/0/{n}",
        verdict=-1,
        baseline=None,
        features=features,
        **SAID,
    )


def example(n: int, features: Features, label: float, served: float = 0.0) -> Example:
    return Example(
        id=f"f{n}", key=f"k{n}", features=features, label=label, served=served, baseline=None, **SAID
    )


def mean(warmup: int = 0) -> Candidate:
    return Candidate("mean", dummy.StatisticRegressor(stats.Mean()), ("x",), warmup=warmup)


def world(candidate: Candidate, bounds: Bounds = WIDE, **limits: int) -> World:
    return World(candidate, "regression", bounds, **limits)


class Raises(linear_model.LinearRegression):
    def predict_one(self, x: dict[Hashable, Any]) -> float:
        raise RuntimeError(f"asked for {x}")


def test_a_label_helps_from_its_arrival_on_and_not_before() -> None:
    w = world(mean())
    w.predicted([prediction(0, {"x": 1.0})])
    w.came_true([example(0, {"x": 1.0}, label=10.0, served=4.0)])  # it had said 0
    w.predicted([prediction(1, {"x": 1.0}), prediction(2, {"x": 1.0})])
    w.came_true([example(1, {"x": 1.0}, label=20.0, served=20.0)])  # it had said 10
    w.came_true([example(2, {"x": 1.0}, label=20.0, served=20.0)])  # made before the label of 1 came
    row = w.row()
    assert (row.compared, row.error, row.served_error) == (3, (10 + 10 + 10) / 3, 6 / 3)
    assert row.difference == pytest.approx(8.0)


def test_it_says_what_its_scorer_says_after_as_many_examples() -> None:
    rng = random.Random(7)

    def made() -> Any:
        return preprocessing.StandardScaler() | linear_model.LinearRegression()

    w, own, errors = world(Candidate("line", made(), ("x", "y"))), made(), []
    for n in range(300):
        asked = {"x": rng.gauss(0, 3), "y": rng.gauss(5, 1)}
        row: Features = {**asked, "other": "unasked"}
        label = 2.0 * asked["x"] - asked["y"] + rng.gauss(0, 0.1)
        w.predicted([prediction(n, row)])
        errors.append(abs(own.predict_one(asked) - label))
        w.came_true([example(n, row, label)])
        own.learn_one(asked, label)
    assert w.row().error == pytest.approx(sum(errors) / 300)


def test_answers_before_the_warm_up_do_not_count() -> None:
    w = world(mean(warmup=2))
    for n in range(4):
        w.predicted([prediction(n, {"x": 1.0})])
        w.came_true([example(n, {"x": 1.0}, label=1.0)])
    row = w.row()
    assert (row.answered, row.learned, row.compared) == (4, 4, 2)


def test_one_that_does_not_learn_stays_as_it_is() -> None:
    w = world(Candidate("still", dummy.StatisticRegressor(stats.Mean()), ("x",), learns=False))
    for n in range(3):
        w.predicted([prediction(n, {"x": 1.0})])
        w.came_true([example(n, {"x": 1.0}, label=5.0)])
    row = w.row()
    assert (row.learned, row.error) == (0, 5.0)


def test_what_comes_after_the_stretch_is_compared_and_not_learned() -> None:
    w = world(mean())
    w.predicted([prediction(0, {"x": 1.0})])
    w.came_true([example(0, {"x": 1.0}, label=5.0)], learn=False)
    assert (w.row().compared, w.row().learned) == (1, 0)


def test_what_could_not_have_been_served_is_counted_apart() -> None:
    w = world(mean(), Bounds(0.0, 8.0))
    w.came_true([example(0, {"x": 1.0}, label=100.0)])
    w.predicted([prediction(1, {"x": 1.0}), prediction(2, {"y": 1.0})])
    row = w.row()
    assert (row.answered, row.out_of_bounds, row.without_features, row.compared) == (1, 1, 1, 0)
    raising = world(Candidate("raises", Raises(), ("x",)))
    raising.predicted([prediction(1, {"x": 1.0})])
    assert raising.row().raised == 1


def test_answers_that_wait_are_bounded_and_the_oldest_are_let_go() -> None:
    w = world(mean(), held=2)
    w.predicted([prediction(n, {"x": 1.0}) for n in range(5)])
    w.came_true([example(n, {"x": 1.0}, label=1.0) for n in range(5)])
    assert w.row().compared == 2


def test_the_interval_is_that_of_the_mean_of_the_differences() -> None:
    rng = random.Random(1)
    pairs, differences = Pairs(), []
    for _ in range(500):
        error, served = 1e6 + rng.random(), 1e6 + rng.random()  # a sum of squares would cancel here
        pairs.add(error, served)
        differences.append(error - served)
    mean_ = sum(differences) / 500
    variance = sum((d - mean_) ** 2 for d in differences) / 499
    assert pairs.difference == pytest.approx(mean_)
    assert pairs.half_width == pytest.approx(NORMAL_95 * math.sqrt(variance / 500))
