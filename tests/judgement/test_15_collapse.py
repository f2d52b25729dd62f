"""An estimator loses its weights, and learns no more."""

from __future__ import annotations

from tests.judgement.estimators import blank, set_rates
from tests.judgement.story import Row, tell, twin_of
from tests.judgement.world import World


def begin(world: World) -> None:
    blank(world, "learned")


def mend(world: World) -> None:
    set_rates(world, "learned", 0.01)


def story() -> Row:
    return tell("collapsed to a constant", begin, ("learned", "collapse"), mend=mend)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
