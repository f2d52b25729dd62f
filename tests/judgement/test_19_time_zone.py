"""A producer writes local time and calls it UTC."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import HOUR_MS, Delivery, Sent, sound, stamp
from tests.judgement.world import World


def local(delivery: Delivery) -> list[Sent]:
    delivery.order["time"] = stamp(delivery.at_ms - 5 * HOUR_MS)
    return sound(delivery)


def begin(world: World) -> None:
    world.town.change = local


def story() -> Row:
    return tell("time-zone slip", begin, ("", "staleness"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
