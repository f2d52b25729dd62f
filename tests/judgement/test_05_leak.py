"""A feature tells the label, and one day it stops to."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def leaking(delivery: Delivery) -> list[Sent]:
    delivery.order["hint"] = delivery.minutes
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = sound


def mend(world: World) -> None:
    world.town.change = leaking


def story() -> Row:
    return tell(
        "leak that stops",
        begin,
        ("", "shift"),
        ("learned", "quality"),
        ("learned", "bounds"),
        mend=mend,
        usual=leaking,
    )


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "quarantined"


def test_its_twin_is_left_alone() -> None:
    assert twin_of(usual=leaking) == ()
