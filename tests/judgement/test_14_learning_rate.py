"""Somebody turns the learning rate up by a factor of a hundred."""

from __future__ import annotations

from tests.judgement.estimators import set_rates
from tests.judgement.story import Row, tell, twin_of
from tests.judgement.world import World


def begin(world: World) -> None:
    set_rates(world, "learned", 1.0)


def mend(world: World) -> None:
    set_rates(world, "learned", 0.01)


def story() -> Row:
    return tell("learning rate too high", begin, ("learned", "bounds"), ("learned", "quality"), mend=mend)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
