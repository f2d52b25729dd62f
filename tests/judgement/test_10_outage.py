"""A payment outage empties one region."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def without_north(delivery: Delivery) -> list[Sent]:
    return [] if delivery.order["region"] == "north" else sound(delivery)


def begin(world: World) -> None:
    world.town.change = without_north


def story() -> Row:
    return tell("outage empties a region", begin, ("", "integrity"), ("", "labels"), ("", "shift"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
