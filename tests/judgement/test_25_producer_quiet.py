"""The producers behind nine orders of ten fall silent."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def phoned(delivery: Delivery) -> list[Sent]:
    return sound(delivery) if delivery.order["channel"] == "phone" else []


def begin(world: World) -> None:
    world.town.change = phoned


def story() -> Row:
    return tell("producer gone quiet", begin, ("", "integrity"), ("", "shift"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
