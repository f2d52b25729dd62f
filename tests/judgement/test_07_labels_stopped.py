"""Outcomes no longer come at all."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import Delivery, Sent
from tests.judgement.world import World


def silent(delivery: Delivery) -> list[Sent]:
    return [Sent(delivery.at_ms, delivery.order)]


def begin(world: World) -> None:
    world.town.change = silent


def story() -> Row:
    return tell("labels stopped", begin, ("", "labels"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
