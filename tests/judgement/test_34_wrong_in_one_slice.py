"""A model is wrong in one region alone: it is barred from that, answers everywhere else, and is given it back."""

from __future__ import annotations

from riverkeeper.topics.messages import State
from tests.judgement.estimators import set_rates, shift_region
from tests.judgement.story import Row, tell, twin_of
from tests.judgement.world import World


def begin(world: World) -> None:
    shift_region(world, "learned", "west", 25.0)


def mend(world: World) -> None:
    assert world.supervisor.routing.routes["learned"].state is State.LIVE
    assert world.supervisor.routing.routes["learned"].barred.keys() == {"region=west"}
    served = world.served.by.copy()
    for _ in range(3):
        world.window()
    told = world.served.by - served
    assert 0 < told["usual"] < told["learned"]
    set_rates(world, "learned", 0.01)


def story() -> Row:
    return tell("wrong in one slice", begin, ("learned", "quality"), mend=mend)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
