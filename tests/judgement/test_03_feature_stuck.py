"""One feature never changes any more."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def stuck(delivery: Delivery) -> list[Sent]:
    delivery.order["items"] = 3
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = stuck


def story() -> Row:
    return tell("feature stuck", begin, ("", "shift"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
