"""A canary is better on average, and worse in one region."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache

from riverkeeper import Model, Pipeline
from tests.judgement.estimators import set_rates, shift_region
from tests.judgement.story import Row, declared, tell, twin_of
from tests.judgement.world import ASKED, OBJECTIVES, World, learned, pipeline


@cache
def with_canary() -> Pipeline:
    models = {**declared().models, "canary": Model(learned, ASKED)}
    return pipeline(models=models, objectives=replace(OBJECTIVES, season=timedelta(days=1)))


def begin(world: World) -> None:
    shift_region(world, "canary", "west", 25.0)


def mend(world: World) -> None:
    set_rates(world, "canary", 0.01)


def story() -> Row:
    return tell(
        "canary worse on one slice",
        begin,
        ("canary", "quality"),
        ("canary", "bias"),
        mend=mend,
        make=with_canary,
    )


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of(with_canary) == ()
