"""Serving computes a feature in another way than training knows."""

from __future__ import annotations

from functools import cache

from riverkeeper import Pipeline, feature
from tests.judgement.story import Row, declared, tell, twin_of
from tests.judgement.world import Order, World, hour, items, pipeline, rush


@feature
def distance(f: Order) -> float | None:
    return None if f.distance is None else f.distance * 0.62


@cache
def in_miles() -> Pipeline:
    features = [hour, rush, distance, items, "region", "channel", "hint"]
    return pipeline(features=features, objectives=declared().objectives("learned"))


def begin(world: World) -> None:
    world.serve_with(in_miles())


def mend(world: World) -> None:
    world.serve_with(world.pipeline)


def story() -> Row:
    return tell("train/serve skew", begin, ("learned", "integrity"), ("learned", "staleness"), mend=mend)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
