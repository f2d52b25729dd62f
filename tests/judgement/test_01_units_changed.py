"""Distances come in metres instead of kilometres."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def metres(delivery: Delivery) -> list[Sent]:
    delivery.order["distance"] *= 1_000
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = metres


def story() -> Row:
    return tell("units changed", begin, ("learned", "bounds"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
