"""Deliveries become longer by a minute an hour."""

from __future__ import annotations

from tests.judgement.story import Row, tell, twin_of
from tests.judgement.town import HOUR_MS, Event, minutes_of
from tests.judgement.world import World


def begin(world: World) -> None:
    onset_ms = world.clock.ms

    def slower(order: Event, at_ms: int) -> float:
        return minutes_of(order, at_ms) + (at_ms - onset_ms) / HOUR_MS

    world.town.truth = slower


def story() -> Row:
    return tell("gradual concept shift", begin, ("learned", "quality"), ("learned", "bias"), ("", "labels"))


def test_it_is_noticed_and_mended() -> None:
    row = story()
    assert row.delay <= 10 and row.action == "alarm"


def test_its_twin_is_left_alone() -> None:
    assert twin_of() == ()
