"""Sketches of columns add up to the sketch of all, are bounded, and tell when a distribution moved."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from riverkeeper.models.sketch import MAX_BINS, added, merged, moments, psi, sketch
from riverkeeper.topics.messages import Scalar, Sketch

values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just(10**400)
)


@given(st.lists(values, max_size=50))
def test_every_value_is_in_one_bin_or_null(column: list[Scalar]) -> None:
    made = sketch(column)
    assert made.count == len(column) == made.nulls + sum(made.bins.values())
    assert made.nulls >= 0 and len(made.bins) <= MAX_BINS
    assert Sketch.model_validate_json(made.encode()) == made


@given(st.lists(st.floats(-1e6, 1e6), max_size=40), st.lists(st.floats(-1e6, 1e6), max_size=40))
def test_parts_add_up(a: list[Scalar], b: list[Scalar]) -> None:
    if len(sketch([*a, *b]).bins) < MAX_BINS:
        assert added(sketch(a), sketch(b)) == sketch([*a, *b])


def test_many_categories_are_bounded() -> None:
    made = sketch([f"n{i}" for i in range(1_000)])
    assert len(made.bins) == MAX_BINS and sum(made.bins.values()) == 1_000


def test_chance_alone_is_no_shift() -> None:
    rng = random.Random(1)
    usual = sketch([rng.gauss(50, 15) for _ in range(20_000)])
    for _ in range(200):
        new = sketch([rng.gauss(50, 15) for _ in range(200)])
        assert _psi(usual, new) < 0.25


@pytest.mark.parametrize(("mean", "spread"), [(80.0, 15.0), (50.0, 0.1), (-50.0, 15.0), (50_000.0, 15_000.0)])
def test_a_shift_is_large(mean: float, spread: float) -> None:
    rng = random.Random(2)
    usual = sketch([rng.gauss(50, 15) for _ in range(20_000)])
    assert _psi(usual, sketch([rng.gauss(mean, spread) for _ in range(200)])) > 0.5


def _psi(a: Sketch, b: Sketch) -> float:
    return psi({k: float(v) for k, v in a.bins.items()}, {k: float(v) for k, v in b.bins.items()})


def test_an_empty_side_tells_nothing() -> None:
    assert psi({}, {"0": 3.0}) == psi({"0": 3.0}, {}) == 0.0


@given(st.lists(st.floats(-1e3, 1e3), max_size=20), st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_moments_merge(a: list[float], b: list[float]) -> None:
    whole, parts = moments([*a, *b]), merged(moments(a), moments(b))
    assert (whole.count, whole.low, whole.high) == (parts.count, parts.low, parts.high)
    assert math.isclose(whole.total, parts.total, abs_tol=1e-6)
    assert math.isclose(whole.squares, parts.squares, abs_tol=1e-3)


def test_what_is_not_finite_has_no_moment() -> None:
    assert moments([math.nan, math.inf, 2.0]) == moments([2.0])
