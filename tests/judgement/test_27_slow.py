"""A model turns slow, though not as slow as the gate would refuse."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache

from riverkeeper import Model, Pipeline
from tests.judgement import estimators
from tests.judgement.story import Row, tell, twin_of
from tests.judgement.world import ASKED, OBJECTIVES, World, pipeline, usual


@cache
def laden() -> Pipeline:
    models = {"learned": Model(estimators.laden, ASKED), "usual": Model(usual, ASKED, warmup=0)}
    return pipeline(models=models, objectives=replace(OBJECTIVES, season=timedelta(days=1), max_us=500.0))


def begin(world: World) -> None:
    def wait() -> None:
        world.clock.ms += 1.0

    estimators.Laden.wait = staticmethod(wait)


def mend(world: World) -> None:
    estimators.Laden.wait = staticmethod(estimators.at_once)


def story() -> Row:
    return tell("slow model", begin, ("learned", "latency"), mend=mend, make=laden)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of(laden) == ()
