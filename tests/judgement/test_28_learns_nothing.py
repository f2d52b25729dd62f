"""A learner goes on to publish, and what it publishes does not change."""

from __future__ import annotations

from tests.judgement import estimators
from tests.judgement.story import Row, tell, twin_of
from tests.judgement.test_27_slow import laden
from tests.judgement.world import World


def never() -> bool:
    return False


def begin(world: World) -> None:
    estimators.Laden.heed = staticmethod(never)


def mend(world: World) -> None:
    estimators.Laden.heed = staticmethod(estimators.always)


def story() -> Row:
    return tell("learning does nothing", begin, ("learned", "golden"), mend=mend, make=laden)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of(laden) == ()
