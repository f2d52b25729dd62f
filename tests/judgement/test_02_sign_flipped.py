"""A producer counts distances downwards."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def backwards(delivery: Delivery) -> list[Sent]:
    delivery.order["distance"] *= -1
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = backwards


def story() -> Row:
    return tell("sign flipped", begin, ("", "shift"), ("learned", "quality"), ("learned", "bounds"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
