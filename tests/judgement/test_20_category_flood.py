"""A channel gets a new name with every order."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def named(delivery: Delivery) -> list[Sent]:
    delivery.order["channel"] = f"promo-{delivery.order['order']}"
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = named


def story() -> Row:
    return tell("new category flood", begin, ("", "shift"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
