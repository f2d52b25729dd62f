"""Bots order, fifteen times as much as people do, always the same."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def botted(delivery: Delivery) -> list[Sent]:
    if int(delivery.order["order"][1:]) % 15:
        delivery.order.update(region="west", channel="web", distance=0.1, items=1)
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = botted
    world.town.crowd = lambda at_ms: 15.0


def mend(world: World) -> None:
    world.town.change = sound
    world.town.crowd = lambda at_ms: 1.0


def story() -> Row:
    return tell("bot flood", begin, ("", "integrity"), ("", "shift"), mend=mend)


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
