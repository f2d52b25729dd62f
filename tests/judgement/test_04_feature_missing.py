"""A feature is missing for one region only."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent, sound
from tests.judgement.world import World


def holed(delivery: Delivery) -> list[Sent]:
    if delivery.order["region"] == "north":
        delivery.order["distance"] = None
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = holed


def story() -> Row:
    return tell(
        "feature missing for one slice", begin, ("", "shift"), ("learned", "quality"), ("learned", "bias")
    )


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
