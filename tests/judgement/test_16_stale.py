"""The learner stands still while examples arrive."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.world import World


def begin(world: World) -> None:
    world.learning = False


def mend(world: World) -> None:
    world.learning = True


def story() -> Row:
    return tell("stale model", begin, ("learned", "staleness"), mend=mend)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
