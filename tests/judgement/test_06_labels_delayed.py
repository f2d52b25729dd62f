"""Outcomes come a day late: after everybody has stopped to wait for them."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import DAY_MS, Delivery, Sent, outcome
from tests.judgement.world import World


def late(delivery: Delivery) -> list[Sent]:
    at_ms = delivery.at_ms + DAY_MS
    return [Sent(delivery.at_ms, delivery.order), Sent(at_ms, outcome(delivery, at_ms))]


def begin(world: World) -> None:
    world.town.change = late


def story() -> Row:
    return tell("labels delayed a day", begin, ("", "labels"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
