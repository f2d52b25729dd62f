"""Only long deliveries are reported."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def complaints(delivery: Delivery) -> list[Sent]:
    order, arrived = sound(delivery)
    return [order, arrived] if delivery.minutes > 27 else [order]


def begin(world: World) -> None:
    world.town.change = complaints


def story() -> Row:
    return tell("labels biased", begin, ("", "labels"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
