"""A new release of a producer writes numbers as words, here and there."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def worded(delivery: Delivery) -> list[Sent]:
    if int(delivery.order["order"][1:]) % 4 == 0:
        delivery.order["items"] = "three"
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = worded


def story() -> Row:
    return tell("schema errors rising", begin, ("", "integrity"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
